"""The files of the page at /: see `routes.page`."""

"""What an operator sees: figures of store, cache and processes, what images share, what runs, and how it was.

Read-only over the store and the pool, but for the history's own file. `routes.seeing` puts it on the wire, the page
at ``/`` draws it.
"""

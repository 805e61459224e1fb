"""HTTP routes: thin adapters from requests to the store, and from its errors to answers."""

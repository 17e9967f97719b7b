"""The routes, one file per subject: each is a function that gives the router of a server."""

"""A fleet and its routers as a discrete-event simulation: the product's policies, index and load, no sockets."""

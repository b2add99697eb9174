"""The service's own work: a body in, a reply out. Knows neither HTTP nor gRPC."""

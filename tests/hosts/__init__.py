"""Several hosts on one machine: network namespaces that can be cut off from each other. Needs root and iproute2."""

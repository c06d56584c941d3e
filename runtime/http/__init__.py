"""The node's HTTP server: one port, guarded, on which every frontend plugin speaks its own dialect."""

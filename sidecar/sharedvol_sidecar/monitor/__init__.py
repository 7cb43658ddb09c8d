"""What a running service shows of itself: state, logs, throughput and replicas."""

"""What can be computed about teacher and student without a network: plain numpy and scipy, no Lightning."""

//! Real containerds, images and clients for Overstream's tests, demo and benchmarks.

//! NATS wire codec.

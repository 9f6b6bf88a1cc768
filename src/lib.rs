//! Alarm digest.

//! The alarm digest.
pub mod alarm;
mod alarms;
pub mod book;
pub mod message;

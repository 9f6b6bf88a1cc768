//! What instances say to each other, from whoever can publish there: one way to write each thing, and never more members
//! or work than there may be.
#![no_main]

use std::time::Duration;

use alarm_digest::alarm::{Id, UserId};
use alarm_digest::durable::members::{Member, Members, Place, Said};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let me = Member(7);
    let mut members = Members::new(me);
    let mut said_by = Vec::new();
    for (second, line) in input.split(|byte| *byte == b'\n').enumerate() {
        let now = Duration::from_secs(second as u64);
        match Said::parse(line) {
            Some((said, member)) => {
                assert_eq!(said.text(member).as_bytes(), line);
                members.on_said(said, member, now);
                said_by.push(member);
            }
            // Anything else is a user to find a place for, or a second that passes.
            None => match std::str::from_utf8(line).ok().and_then(|text| Id::new(text).ok()) {
                Some(id) => {
                    if let Place::With { member, .. } = members.place(&UserId(id)) {
                        assert!(member != me && said_by.contains(&member));
                    }
                }
                None => drop(members.on_time(now)),
            },
        }
        assert!(members.count() <= 1 + said_by.len());
    }
});

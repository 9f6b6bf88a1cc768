//! The book against an oracle that keeps the whole history: any order and any repetition of the same changes between
//! two digests gives the same digests.

use alarm_digest::alarm::{AlarmId, Change, Condition, Id, Status, Timestamp, UserId};
use alarm_digest::book::Book;
use alarm_digest_checker::Oracle;
use proptest::prelude::*;

fn user(number: u8) -> UserId {
    UserId(Id::new(&format!("user {number}")).expect("a valid id"))
}

/// Few users, alarms and instants, so that they meet often. The instants span the representable range.
fn changes() -> impl Strategy<Value = Change> {
    let status = prop_oneof![Just(Status::Cleared), Just(Status::Warning), Just(Status::Critical)];
    let seconds = prop_oneof![Just(-62_167_305_540_i64), -2..3_i64, Just(253_402_387_139)];
    (0..2_u8, 0..3_u8, seconds, prop_oneof![Just(0), Just(1), Just(999_999_999_u32)], status).prop_map(
        |(number, alarm, seconds, nanos, status)| Change {
            user: user(number),
            alarm: AlarmId(Id::new(&format!("alarm {alarm}")).expect("a valid id")),
            condition: Condition::new(Timestamp::new(seconds, nanos), status),
        },
    )
}

/// What happens between two digests: changes, and the same ones shuffled with some of them repeated.
fn between_digests() -> impl Strategy<Value = (Vec<Change>, Vec<Change>)> {
    prop::collection::vec(changes(), 0..8).prop_flat_map(|changes| {
        let repeated =
            prop::collection::vec(any::<prop::sample::Index>(), if changes.is_empty() { 0..1 } else { 0..4 });
        let all = (Just(changes.clone()), repeated).prop_map(|(mut all, repeated)| {
            if !all.is_empty() {
                let again: Vec<_> = repeated.iter().map(|index| index.get(&all).clone()).collect();
                all.extend(again);
            }
            all
        });
        (Just(changes), all.prop_shuffle())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn any_order_and_repetition_between_two_digests_gives_the_same_digests(
        spans in prop::collection::vec((between_digests(), 0..2_u8), 1..8)
    ) {
        let (mut book, mut oracle) = (Book::new(), Oracle::default());
        for ((in_order, shuffled), asked) in spans {
            in_order.iter().for_each(|change| oracle.apply(change));
            shuffled.into_iter().for_each(|change| book.apply(change));
            prop_assert_eq!(book.take_digest(&user(asked)), oracle.take_digest(&user(asked)));
        }
        for number in 0..2 {
            prop_assert_eq!(book.take_digest(&user(number)), oracle.take_digest(&user(number)));
        }
    }
}

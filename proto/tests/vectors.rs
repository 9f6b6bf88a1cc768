//! The vectors in `codec-vectors.json`: made from the facts of the protocol and tried on nats-server 2.9.10 and 2.15.1.

#[allow(dead_code)]
#[path = "../examples/vectors.rs"]
mod vectors;

#[test]
fn every_vector_that_is_judged_passes_under_every_cut() {
    assert_eq!(vectors::run(include_str!("codec-vectors.json")), 0, "failed vectors are printed above");
}

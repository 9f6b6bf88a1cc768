//! A digest as it was told, checked off in the ledger.
//!
//! Never: a message to anybody.

use std::borrow::Cow;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::ledger::Ledger;
use crate::workload::Texts;

/// The JSON.
#[derive(Deserialize)]
pub struct Digest<'a> {
    /// Whose.
    #[serde(rename = "UserID", borrow)]
    pub user: Cow<'a, str>,
    /// At least one.
    #[serde(rename = "ActiveAlarms", borrow)]
    pub alarms: Vec<Alarm<'a>>,
}

/// One of them.
#[derive(Deserialize)]
pub struct Alarm<'a> {
    #[serde(rename = "AlarmID", borrow)]
    id: Cow<'a, str>,
    #[serde(rename = "Status", borrow)]
    status: Cow<'a, str>,
    #[serde(rename = "LatestChangedAt", borrow)]
    changed_at: Cow<'a, str>,
}

impl Alarm<'_> {
    /// When it changed.
    ///
    /// # Errors
    /// When it does not say so.
    pub fn instant(&self) -> Result<OffsetDateTime> {
        Ok(OffsetDateTime::parse(&self.changed_at, &Rfc3339)?)
    }
}

impl<'a> Digest<'a> {
    /// Reads one.
    ///
    /// # Errors
    /// When it is none, or tells nothing.
    pub fn read(payload: &'a [u8]) -> Result<Self> {
        let digest: Self = serde_json::from_slice(payload).context("expected a digest")?;
        ensure!(!digest.alarms.is_empty(), "expected no digest when nothing is due");
        Ok(digest)
    }

    /// Checks off what it tells `user`; `on_told` hears of each pair and the count of its change.
    ///
    /// # Errors
    /// When something in it was never sent, or not in this order.
    pub fn check_off(
        &self,
        user: u32,
        texts: &Texts,
        ledger: &mut Ledger,
        mut on_told: impl FnMut(u32, u32),
    ) -> Result<()> {
        let mut last = None;
        for alarm in &self.alarms {
            let pair = texts.alarms.number(&alarm.id).filter(|pair| pair / texts.alarms_per_user == user);
            let pair = pair.context("not an alarm of this user")?;
            let changed_at = alarm.instant()?;
            let place = Some((changed_at, &alarm.id));
            ensure!(last < place, "expected the oldest first");
            last = place;
            let count = texts.count(pair, changed_at).context("not an instant we sent")?;
            ledger.tell(pair, count, &alarm.status);
            on_told(pair, count);
        }
        Ok(())
    }
}

//! Somebody who drains this host: `lapis drain`, as the daemon hears it.

use std::time::Duration;

use lapis::engine::DrainReport;
use lapis_config::Time;
use lapis_transport::{
    hello::{ToClient, ToDaemon},
    wire::ConnId,
};

use super::net::{Net, Pid, Received};

/// Messages and turns take their time.
const LATE_MAX: Duration = Duration::from_millis(500);

pub struct Operator {
    pid: Pid,
    conn: ConnId,
    until: Time,
    answer: String,
    /// Of the daemon that was asked.
    life: u32,
}

impl Operator {
    /// `None` if nobody listens.
    pub fn start(net: &mut Net, pid: Pid, within: Duration, now: Time, life: u32) -> Option<Self> {
        net.start_process(pid);
        let conn = net.connect(pid, 0, 0)?;
        net.send(conn, &ToDaemon::Drain { within_us: within.as_micros() as u64 });
        Some(Self { pid, conn, until: now.after(within), answer: String::new(), life })
    }

    pub fn due(&self, net: &Net) -> Time {
        let late = self.until.after(LATE_MAX);
        net.next_for(self.conn).map_or(late, |at| at.min(late))
    }

    /// The report, if it is over; nobody gives one if the daemon died. `life`: of the daemon that runs now, if one does.
    pub fn turn(&mut self, net: &mut Net, now: Time, life: Option<u32>) -> Result<Option<Option<DrainReport>>, String> {
        let report = match net.receive(self.conn) {
            Received::Nothing if now >= self.until.after(LATE_MAX) => return Err("a drain is not over in time".into()),
            Received::Nothing => return Ok(None),
            Received::HungUp if life == Some(self.life) => return Err("a drain ended without a report".into()),
            Received::HungUp => None,
            Received::Message(ToClient::Status { json, last }, _) => {
                self.answer += &json;
                if !last {
                    return Ok(None);
                }
                let report: DrainReport = serde_json::from_str(&self.answer).map_err(|error| error.to_string())?;
                if report.there + report.moved + report.left != report.blocks {
                    return Err(format!("a drain has lost count: {report:?}"));
                }
                Some(report)
            }
            Received::Message(message, _) => return Err(format!("a drain is answered by {message:?}")),
        };
        net.close(self.conn);
        net.end_process(self.pid, false);
        Ok(Some(report))
    }
}

//! Time as the program sees it, and how much of its own is left.

use crate::guest::{Answer, Guest};
use rustix::event::Timespec;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

const NANOSECONDS: u64 = 1_000_000_000;
/// How long after the limit a wait ends at the latest: the loader notices an overrun within half the limit or 20 ms, and must have done so
/// before a program could see its wait cut short.
const GRACE: Duration = Duration::from_millis(25);

/// Between two tries.
const MOMENT: Duration = Duration::from_millis(1);

/// Begins with the program.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    /// When waits end, from the start.
    limit: Option<Duration>,
}

impl Clock {
    pub fn new(limit: Option<Duration>) -> Clock {
        Clock { start: Instant::now(), limit: limit.map(|limit| limit + GRACE.min(limit / 2 + Duration::from_millis(2))) }
    }

    /// Time until the program is stopped, `None` for ever.
    fn rest(&self) -> Option<Duration> {
        self.limit.map(|limit| limit.saturating_sub(self.start.elapsed()))
    }

    /// The same for a wait in the kernel.
    pub fn left(&self) -> Option<Timespec> {
        self.rest().and_then(|rest| Timespec::try_from(rest).ok())
    }

    /// Waits for a moment: for what says that it is ready and is not.
    ///
    /// # Errors
    /// `EINTR` if no time is left, which ends the call.
    pub fn pause(&self) -> Result<(), Errno> {
        let rest = self.rest().unwrap_or(MOMENT);
        std::thread::sleep(rest.min(MOMENT));
        if rest.is_zero() { Err(Errno::INTR) } else { Ok(()) }
    }

    /// Time of clock `id`: real time and processor time are the host's, all others count from the program's start.
    fn now(&self, id: u64) -> Result<Duration, Errno> {
        let host = match id {
            0 | 5 => ClockId::Realtime,
            2 | 3 => ClockId::ThreadCPUTime,
            1 | 4 | 6 | 7 => return Ok(self.start.elapsed()),
            _ => return Err(Errno::INVAL),
        };
        let time = clock_gettime(host);
        Duration::try_from(time).map_err(|_| Errno::INVAL)
    }

    /// `clock_gettime`.
    pub fn get(&self, guest: &mut Guest<'_, '_>, id: u64, to: u64) -> Answer {
        let now = self.now(id)?;
        guest.write_words(to, &[now.as_secs(), now.subsec_nanos().into()])?;
        Ok(0)
    }

    /// `clock_getres`: a nanosecond.
    pub fn resolution(&self, guest: &mut Guest<'_, '_>, id: u64, to: u64) -> Answer {
        self.now(id)?;
        if to != 0 {
            guest.write_words(to, &[0, 1])?;
        }
        Ok(0)
    }

    /// `gettimeofday`; the time zone is none.
    pub fn time_of_day(&self, guest: &mut Guest<'_, '_>, to: u64, zone: u64) -> Answer {
        let now = self.now(0)?;
        if to != 0 {
            guest.write_words(to, &[now.as_secs(), now.subsec_micros().into()])?;
        }
        if zone != 0 {
            guest.write_words(zone, &[0])?;
        }
        Ok(0)
    }

    /// `time`.
    pub fn seconds(&self, guest: &mut Guest<'_, '_>, to: u64) -> Answer {
        let now = self.now(0)?.as_secs();
        if to != 0 {
            guest.write_words(to, &[now])?;
        }
        Ok(now)
    }

    /// Sleeps for the time at `request`, or until clock `id` shows it if `absolute`; at most for what is left (`EINTR` then,
    /// which ends the call).
    pub fn sleep(&self, guest: &Guest<'_, '_>, id: u64, absolute: bool, request: u64) -> Answer {
        let [seconds, nanoseconds] = guest.words(request)?;
        if nanoseconds >= NANOSECONDS || seconds > i64::MAX.cast_unsigned() {
            return Err(Errno::INVAL);
        }
        let asked = Duration::new(seconds, nanoseconds as u32);
        let wanted = if absolute { asked.saturating_sub(self.now(id)?) } else { asked };
        let possible = self.rest().map_or(wanted, |rest| rest.min(wanted));
        std::thread::sleep(possible);
        if possible == wanted {
            return Ok(0);
        }
        Err(Errno::INTR)
    }
}

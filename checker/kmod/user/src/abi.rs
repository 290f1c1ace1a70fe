//! The structures and numbers of `../../include/cordon.h`; a test compares them with the C compiler's.

/// Bytes of an entry's name with its NUL.
pub const NAME_BYTES: usize = 128;
/// Most return addresses of a report.
pub const FRAMES: usize = 32;

/// Flag of [`Insert`]: only metered text.
pub const DEMAND_METERED: u32 = 1;
/// Flag of [`Insert`]: a window for each CPU.
pub const PER_CPU: u32 = 2;

/// Flags of [`Run`].
pub const HAS_PLACE: u32 = 1;
pub const HAS_ADDRESS: u32 = 2;
pub const HAS_REGISTERS: u32 = 4;
pub const IS_WRITE: u32 = 8;
pub const IN_GATE: u32 = 16;
pub const NO_INTERRUPTS: u32 = 32;

macro_rules! codes {
    ($(#[$doc:meta])* $module:ident { $($name:ident = $value:literal, $text:literal;)* }) => {
        $(#[$doc])*
        pub mod $module {
            $(pub const $name: u32 = $value;)*

            /// A few words for a person.
            #[must_use]
            pub const fn text(code: u32) -> &'static str {
                match code { $($name => $text,)* _ => "unknown" }
            }
        }
    };
}

codes! {
    /// `enum cordon_verdict`.
    verdict {
        ACCEPTED = 0, "accepted";
        REJECTED = 1, "rejected by the checker";
        BAD_FORMAT = 2, "no image file";
        BAD_NOTE = 3, "malformed image note";
        BAD_LAYOUT = 4, "layout not for a kernel host";
        BAD_PLACE = 5, "stack place that the module does not offer";
        TOO_LARGE = 6, "text, tables or memory beyond the limits";
        NOT_METERED = 7, "not metered";
        INIT_STOPPED = 8, "constructors were stopped";
        NO_CPU = 9, "uses instructions that this processor lacks";
        OVER_QUOTA = 10, "more than an unprivileged user may have";
    }
}

codes! {
    /// `enum cordon_kind`.
    kind {
        RETURNED = 0, "returned";
        NULL_ZONE = 1, "null-zone";
        UNMAPPED = 2, "unmapped";
        READ_ONLY = 3, "read-only";
        DATA_STACK_OVERFLOW = 4, "data-stack-overflow";
        NATIVE_STACK_OVERFLOW = 5, "native-stack-overflow";
        DIVIDE = 6, "divide";
        TRAP = 7, "trap";
        BAD_CODE_POINTER = 8, "bad-code-pointer";
        GATE_RANGE = 9, "gate-range";
        TIME_LIMIT = 10, "time-limit";
        FUEL = 11, "fuel";
        OTHER = 12, "other";
        BAD_JUMP = 13, "bad-jump";
    }
}

/// `struct cordon_run`.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Run {
    pub entry: [u8; NAME_BYTES],
    pub args: [u64; 6],
    /// 0 = the module's default.
    pub time_limit_ns: u64,
    /// 0 = 2^40.
    pub fuel: u64,
    pub result: u64,
    pub elapsed_ns: u64,
    pub fuel_used: u64,
    /// See [`kind`].
    pub kind: u32,
    pub flags: u32,
    pub text_offset: u32,
    pub access_bytes: u32,
    pub address: u64,
    pub window_offset: u64,
    pub registers: [u64; 16],
    pub frames: u32,
    pub frame: [u32; FRAMES],
    pub depth: [u32; FRAMES],
    pub gate: [u8; 32],
    /// That it ran on.
    pub cpu: u32,
}

impl Run {
    /// A call of `entry`; a name that is too long is cut, and then no entry's.
    #[must_use]
    pub fn new(entry: &str, args: [u64; 6]) -> Run {
        let mut run = Run::default();
        let length = entry.len().min(NAME_BYTES);
        run.entry[..length].copy_from_slice(&entry.as_bytes()[..length]);
        run.args = args;
        run
    }
}

impl Default for Run {
    fn default() -> Run {
        Run {
            entry: [0; NAME_BYTES],
            args: [0; 6],
            time_limit_ns: 0,
            fuel: 0,
            result: 0,
            elapsed_ns: 0,
            fuel_used: 0,
            kind: 0,
            flags: 0,
            text_offset: 0,
            access_bytes: 0,
            address: 0,
            window_offset: 0,
            registers: [0; 16],
            frames: 0,
            frame: [0; FRAMES],
            depth: [0; FRAMES],
            gate: [0; 32],
            cpu: 0,
        }
    }
}

/// A name with its NUL; one that is too long is cut.
fn cut(text: &str) -> [u8; NAME_BYTES] {
    let mut bytes = [0; NAME_BYTES];
    let length = text.floor_char_boundary(NAME_BYTES - 1);
    bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
    bytes
}

/// The text in front of the first NUL; what is no UTF-8 becomes U+FFFD.
#[must_use]
pub fn text_of(bytes: &[u8]) -> String {
    let length = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

/// `struct cordon_insert`.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Insert {
    pub image: u64,
    pub length: u64,
    /// For lists.
    pub name: [u8; NAME_BYTES],
    pub flags: u32,
    /// See [`verdict`].
    pub verdict: u32,
    /// Number in the checker's SPEC.md.
    pub rule: u32,
    pub offset: u32,
    pub instructions: u32,
    pub max_depth: u32,
    pub features: u64,
    pub run: Run,
}

impl Insert {
    /// Nothing yet but a name for lists.
    #[must_use]
    pub fn named(name: &str) -> Insert {
        Insert {
            image: 0,
            length: 0,
            name: cut(name),
            flags: 0,
            verdict: 0,
            rule: 0,
            offset: 0,
            instructions: 0,
            max_depth: 0,
            features: 0,
            run: Run::default(),
        }
    }
}

/// `struct cordon_stats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Stats {
    pub calls: u64,
    pub returned: u64,
    pub stopped: u64,
    pub busy: u64,
    pub refused: u64,
    pub pages: u64,
    pub text_bytes: u64,
}

/// `struct cordon_totals`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Totals {
    pub handlers: u64,
    pub inserted: u64,
    pub removed: u64,
    pub arena_pages: u64,
    pub window_pages: u64,
    pub table_entries: u64,
    pub maps: u64,
}

/// `enum cordon_event_kind`.
pub mod event {
    pub const NETFILTER: u32 = 0;
    pub const KPROBE: u32 = 1;
    pub const TRACEPOINT: u32 = 2;
    pub const TIMER: u32 = 3;
    pub const NETFILTER6: u32 = 4;
}

/// Flag of [`Attach`]: the handler may change packets.
pub const WRITABLE: u32 = 1;

/// `struct cordon_attach`.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Attach {
    /// See [`event`].
    pub kind: u32,
    /// `enum nf_inet_hooks`.
    pub hook: u32,
    /// [`WRITABLE`], for packets.
    pub flags: u32,
    /// Of a packet that are copied; 0 = as many as there is room for.
    pub bytes: u32,
    /// Of a kprobe, from the function's start.
    pub offset: u64,
    pub period_ns: u64,
    pub time_limit_ns: u64,
    pub fuel: u64,
    pub name: [u8; NAME_BYTES],
    pub entry: [u8; NAME_BYTES],
}

impl Attach {
    /// `entry` for events of `kind` called `name`; names that are too long are cut.
    #[must_use]
    pub fn new(kind: u32, name: &str, entry: &str) -> Attach {
        Attach {
            kind,
            hook: 0,
            flags: 0,
            bytes: 0,
            offset: 0,
            period_ns: 0,
            time_limit_ns: 0,
            fuel: 0,
            name: cut(name),
            entry: cut(entry),
        }
    }
}

impl Default for Attach {
    fn default() -> Attach {
        Attach::new(0, "", "")
    }
}

/// Flag of [`EventStats`]: the event of that number, or the next one.
pub const OR_ABOVE: u32 = 1;

/// Flags of [`About`].
pub const PINNED: u32 = 1;
pub const ENDED: u32 = 2;
pub const UNPRIVILEGED: u32 = 4;

/// `struct cordon_about`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct About {
    pub id: u32,
    pub flags: u32,
    pub uid: u32,
    pub pid: u32,
    pub process: [u8; 16],
    pub name: [u8; NAME_BYTES],
    pub events: u32,
    pub reserved: u32,
    pub stats: Stats,
}

impl About {
    /// Nothing yet but the number.
    #[must_use]
    pub fn of(id: u32) -> About {
        About {
            id,
            flags: 0,
            uid: 0,
            pid: 0,
            process: [0; 16],
            name: [0; NAME_BYTES],
            events: 0,
            reserved: 0,
            stats: Stats::default(),
        }
    }
}

/// `struct cordon_event_stats`.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct EventStats {
    pub number: u32,
    pub flags: u32,
    /// What it is.
    pub attach: Attach,
    pub fired: u64,
    pub returned: u64,
    pub stopped: u64,
    pub missed: u64,
    pub zero: u64,
    /// Packets that the handler changed, and those that it could not for want of memory.
    pub changed: u64,
    pub unchanged: u64,
    /// The last call that was stopped.
    pub last: Run,
}

/// `enum cordon_map_kind`.
pub mod map_kind {
    pub const ARRAY: u32 = 0;
    pub const HASH: u32 = 1;
}

/// Flags of an update.
pub mod map_flag {
    pub const ANY: u64 = 0;
    pub const NOEXIST: u64 = 1;
    pub const EXIST: u64 = 2;
}

/// `struct cordon_map_spec`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MapSpec {
    /// See [`map_kind`].
    pub kind: u32,
    pub key_bytes: u32,
    pub value_bytes: u32,
    pub entries: u32,
    pub reserved: u64,
}

/// `struct cordon_map_bind`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MapBind {
    pub number: u32,
    pub map: i32,
}

/// `struct cordon_map_access`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MapAccess {
    pub key: u64,
    pub value: u64,
    /// See [`map_flag`].
    pub flags: u64,
    pub cursor: u32,
    pub reserved: u32,
}

/// `_IOC` of asm-generic/ioctl.h: direction (2 read, 1 write), type 'K', number, size.
const fn command<T>(direction: u64, number: u64) -> u64 {
    direction << 30 | (size_of::<T>() as u64) << 16 | plain(number)
}

/// The same without a direction or size.
const fn plain(number: u64) -> u64 {
    (b'K' as u64) << 8 | number
}

pub const INSERT: u64 = command::<Insert>(3, 0xc0);
pub const TOTALS: u64 = command::<Totals>(2, 0xc1);
pub const RUN: u64 = command::<Run>(3, 0xc2);
pub const STATS: u64 = command::<Stats>(2, 0xc3);
pub const ATTACH: u64 = command::<Attach>(1, 0xc4);
pub const DETACH: u64 = command::<u32>(1, 0xc5);
pub const EVENT: u64 = command::<EventStats>(3, 0xc6);
pub const NEXT: u64 = command::<About>(3, 0xd0);
pub const OPEN: u64 = command::<u32>(1, 0xd1);
pub const REMOVE: u64 = command::<u32>(1, 0xd2);
pub const ABOUT: u64 = command::<About>(2, 0xd3);
pub const PIN: u64 = plain(0xd4);
pub const UNPIN: u64 = plain(0xd5);
pub const MAP_CREATE: u64 = command::<MapSpec>(1, 0xe0);
pub const MAP_BIND: u64 = command::<MapBind>(1, 0xe1);
pub const MAP_LOOKUP: u64 = command::<MapAccess>(1, 0xe2);
pub const MAP_UPDATE: u64 = command::<MapAccess>(1, 0xe3);
pub const MAP_DELETE: u64 = command::<MapAccess>(1, 0xe4);
pub const MAP_NEXT: u64 = command::<MapAccess>(3, 0xe5);

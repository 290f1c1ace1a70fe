//! Enumerates encodings with what does not matter collapsed: register numbers to one of each kind that encodings tell apart, SIB bytes to one
//! of each form, displacements and immediates to the bytes of a fill.

/// How much to collapse.
#[derive(Clone, Copy, Debug)]
pub struct Collapse {
    rexes: &'static [u8],
    /// Values of VEX.vvvv as encoded (inverted).
    vvvvs: &'static [u8],
    /// R, X and B of three-byte VEX as encoded (inverted).
    extensions: &'static [u8],
    /// ModRM.rm of the register form, and of the memory forms.
    registers: &'static [u8],
    bases: &'static [u8],
    /// SIB bytes behind each of the memory forms.
    sibs: &'static [u8],
    /// Memory forms: ModRM.mod.
    modes: &'static [u8],
    /// Also 67 without the segment, and `lock` with F2 or F3.
    stray: bool,
}

/// Stands for "no REX" in [`Collapse::rexes`].
const NO_REX: u8 = 0;

impl Collapse {
    /// A slice that takes seconds: one register of each kind, rsp among them; no prefixes that nothing takes.
    pub const SLICE: Collapse = Collapse {
        rexes: &[NO_REX, 0x40, 0x41, 0x44, 0x48],
        vvvvs: &[15, 11],
        extensions: &[7, 3, 5, 6],
        registers: &[0, 4],
        bases: &[1],
        sibs: &[0x25, 0x51],
        modes: &[0, 1],
        stray: false,
    };
    /// All REX prefixes and ModRM bytes; SIB bytes of no base, rsp, rbp, rdi with no index, rax, rbp, rdi, at scale 1 and 8.
    pub const WHOLE: Collapse = Collapse {
        rexes: &[NO_REX, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x4b, 0x4c, 0x4d, 0x4e, 0x4f],
        vvvvs: &[15, 11, 3, 0],
        extensions: &[0, 1, 2, 3, 4, 5, 6, 7],
        registers: &[0, 1, 2, 3, 4, 5, 6, 7],
        bases: &[0, 1, 2, 3, 5, 6, 7],
        sibs: &[
            0x00, 0x04, 0x05, 0x07, 0x20, 0x24, 0x25, 0x27, 0x28, 0x2c, 0x2d, 0x2f, 0x38, 0x3c, 0x3d, 0x3f, 0xc0, 0xc4, 0xc5,
            0xc7, 0xe0, 0xe4, 0xe5, 0xe7, 0xe8, 0xec, 0xed, 0xef, 0xf8, 0xfc, 0xfd, 0xff,
        ],
        modes: &[0, 1, 2],
        stray: true,
    };

    /// ModRM, and SIB where there is one; all register forms for opcodes that ModRM extends.
    fn tails(self, extended: bool) -> Vec<Vec<u8>> {
        let mut tails = Vec::new();
        let registers = if extended { Collapse::WHOLE.registers } else { self.registers };
        for reg in (0..8).map(|reg| reg << 3) {
            tails.extend(registers.iter().map(|rm| vec![0xc0 | reg | rm]));
            for mode in self.modes.iter().map(|mode| mode << 6) {
                tails.extend(self.bases.iter().map(|rm| vec![mode | reg | rm]));
                tails.extend(self.sibs.iter().map(|sib| vec![mode | reg | 4, *sib]));
            }
        }
        tails
    }

    /// Subsets of the legacy prefixes in canonical order.
    fn prefixes(self) -> Vec<Vec<u8>> {
        let optional = |byte: u8| [vec![], vec![byte]];
        let mut all = Vec::new();
        for address in [vec![], vec![0x65], vec![0x65, 0x67], vec![0x67]] {
            for lock in optional(0xf0) {
                for opsize in optional(0x66) {
                    for rep in [vec![], vec![0xf3], vec![0xf2]] {
                        let stray = address == [0x67] || !lock.is_empty() && !rep.is_empty();
                        if self.stray || !stray {
                            all.push([&address[..], &lock, &opsize, &rep].concat());
                        }
                    }
                }
            }
        }
        all
    }

    fn legacy_heads(self) -> Vec<Vec<u8>> {
        let mut heads = Vec::new();
        for prefix in self.prefixes() {
            for rex in self.rexes.iter().map(|&rex| if rex == NO_REX { vec![] } else { vec![rex] }) {
                for map in [&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]] {
                    heads.push([&prefix[..], &rex, map].concat());
                }
            }
        }
        with_opcodes(heads)
    }

    fn vex_heads(self) -> Vec<Vec<u8>> {
        let mut heads = Vec::new();
        for prefix in [&[0x65, 0x67][..], &[0x65], &[]] {
            // W or R, vvvv, L and pp.
            let fields =
                self.vvvvs.iter().flat_map(|vvvv| (0..8).flat_map(move |low| [0, 0x80].map(|top| top | vvvv << 3 | low)));
            for fields in fields {
                heads.push([prefix, &[0xc5, fields]].concat());
                for extensions in self.extensions {
                    heads.extend((1..4).map(|map| [prefix, &[0xc4, extensions << 5 | map, fields]].concat()));
                }
            }
        }
        with_opcodes(heads)
    }

    /// Calls `each` with every byte string whose head is one of this worker's, the bytes behind the tail being `fill`.
    pub fn visit(self, fill: u8, worker: usize, workers: usize, mut each: impl FnMut(&[u8])) {
        let (tails, extended, whole) = (self.tails(false), self.tails(true), Collapse::WHOLE.tails(true));
        for head in self.legacy_heads().iter().chain(&self.vex_heads()).skip(worker).step_by(workers) {
            let tails = match head.as_slice() {
                // The no-ops have special constants.
                [.., 0x0f, 0x1f] => &whole,
                [.., 0xd8..=0xdf] | [.., 0x0f, 0x01 | 0x1e | 0xae] => &extended,
                _ => &tails,
            };
            for tail in tails {
                let mut bytes = [fill; 24];
                bytes[..head.len()].copy_from_slice(head);
                bytes[head.len()..head.len() + tail.len()].copy_from_slice(tail);
                each(&bytes);
            }
        }
    }
}

fn with_opcodes(heads: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    heads.iter().flat_map(|head| (0..=255).map(move |opcode| [&head[..], &[opcode]].concat())).collect()
}

/// Runs `job(worker, workers)` on every processor.
pub fn on_all_processors<T: Send>(job: impl Fn(usize, usize) -> T + Sync) -> Vec<T> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|worker| {
                scope.spawn({
                    let job = &job;
                    move || job(worker, workers)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a worker does not panic")).collect()
    })
}

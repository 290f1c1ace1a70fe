//! Compares what the checker's tables say of an accepted encoding with iced-x86.

use cordon_checker::policy::Host;
use cordon_checker::{Description, Features, Flow, MemoryOperand, Mode, describe_in};
use iced_x86::{
    Code, CpuidFeature, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind,
    Register, UsedMemory, UsedRegister,
};

/// Counts of one comparison run.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub tried: u64,
    pub accepted: u64,
    /// Differences, at most [`Tally::KEPT`] of them in words.
    pub differences: u64,
    pub examples: Vec<String>,
    kinds: std::collections::BTreeSet<String>,
}

impl Tally {
    const KEPT: usize = 40;

    pub fn add(&mut self, other: Tally) {
        self.tried += other.tried;
        self.accepted += other.accepted;
        self.differences += other.differences;
        self.examples.extend(other.examples);
        self.examples.truncate(Tally::KEPT);
    }

    /// Keeps one example of each kind of difference.
    fn report(&mut self, kind: String, example: String) {
        self.differences += 1;
        if self.examples.len() < Tally::KEPT && self.kinds.insert(kind) {
            self.examples.push(example);
        }
    }
}

/// One decoder pair and its buffers.
pub struct Oracle {
    info: InstructionInfoFactory,
    host: Host,
    mode: Mode,
}

impl Oracle {
    pub fn new(host: Host, mode: Mode) -> Oracle {
        Oracle { info: InstructionInfoFactory::new(), host, mode }
    }

    /// Compares one byte string if the checker accepts it.
    pub fn compare(&mut self, bytes: &[u8], tally: &mut Tally) {
        tally.tried += 1;
        let Ok(ours) = describe_in(bytes, self.host, self.mode) else { return };
        tally.accepted += 1;
        if let Err(difference) = self.difference(bytes, &ours) {
            let example = format!("{}: {difference}; {ours:?}", hex(&bytes[..ours.len]));
            tally.report(difference, example);
        }
    }

    fn difference(&mut self, bytes: &[u8], ours: &Description) -> Result<(), String> {
        let theirs = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
        let amd = Decoder::with_ip(64, bytes, 0, DecoderOptions::AMD).decode();
        same("code", theirs.code() == Code::INVALID, false)?;
        same("length", ours.len, theirs.len())?;
        same("AMD length", theirs.len(), amd.len())?;
        same("AMD code", theirs.code(), amd.code())?;
        same("flow", ours.flow, flow(&theirs))?;
        self.compare_memory(ours, &theirs).map_err(|e| format!("{:?}: {e}", theirs.code()))?;
        self.compare_writes(ours, &theirs).map_err(|e| format!("{:?}: {e}", theirs.code()))?;
        if Features::GENERAL.contains(ours.features) {
            // A loader then neither clears other registers nor looks at control words.
            let other = |used: &UsedRegister| !used.register().is_gpr() && !used.register().is_segment_register();
            let others = self.info.info(&theirs).used_registers().iter().any(other);
            same("registers but the general ones", others, false).map_err(|e| format!("{:?}: {e}", theirs.code()))?;
        }
        features(ours.features, &theirs).map_err(|e| format!("{:?}: {e}", theirs.code()))
    }

    fn compare_memory(&mut self, ours: &Description, theirs: &Instruction) -> Result<(), String> {
        let segment = if self.host == Host::User { Register::GS } else { Register::FS };
        let explicit = (0..theirs.op_count()).any(|op| theirs.op_kind(op) == OpKind::Memory);
        // Address arithmetic and no-ops have the form of an access but are none.
        let access = explicit && !matches!(theirs.mnemonic(), Mnemonic::Lea | Mnemonic::Nop);
        let info = self.info.info(theirs);
        let stack = |used: &&UsedMemory| used.base() == Register::RSP && used.segment() == Register::SS;
        let used: Vec<&UsedMemory> = info.used_memory().iter().filter(|used| !stack(used)).collect();
        let Some(memory) = ours.memory.filter(|_| ours.flow == Flow::Next) else {
            let import = matches!(ours.flow, Flow::TableCall { .. } | Flow::TableJump { .. });
            return same("memory operand", access || (!used.is_empty() && explicit), import);
        };
        same("memory operand", true, access)?;
        same("segment", theirs.memory_segment(), segment)?;
        same("segment prefix", theirs.segment_prefix(), segment)?;
        same("base", memory.base.map(u32::from), number(&memory, theirs.memory_base())?)?;
        same("index", memory.index.map(u32::from), number(&memory, theirs.memory_index())?)?;
        if memory.index.is_some() {
            same("scale", u32::from(memory.scale), theirs.memory_index_scale())?;
        }
        same("displacement", memory.disp, theirs.memory_displacement32().cast_signed())?;
        same("size", usize::from(memory.bytes), theirs.memory_size().size())?;
        let prefetch = matches!(
            theirs.mnemonic(),
            Mnemonic::Prefetchnta | Mnemonic::Prefetcht0 | Mnemonic::Prefetcht1 | Mnemonic::Prefetcht2 | Mnemonic::Prefetchw
        );
        same("prefetch", memory.prefetch, prefetch)?;
        if prefetch {
            return same("address size of a prefetch", memory.wide, false);
        }
        same("number of accesses", used.len(), 1)?;
        let (read, write) = kind(used[0].access());
        same("wide access that is no load", memory.wide && (write || !read), false)?;
        same("read, write", (memory.read, memory.write), (read, write))
    }

    fn compare_writes(&mut self, ours: &Description, theirs: &Instruction) -> Result<(), String> {
        let mut set = 0_u16;
        let info = self.info.info(theirs);
        for used in info.used_registers() {
            if used.register().is_gpr() && kind(used.access()).1 {
                set |= 1 << used.register().full_register().number();
            }
        }
        let implicit_rsp = matches!(theirs.mnemonic(), Mnemonic::Push | Mnemonic::Pop | Mnemonic::Call | Mnemonic::Ret);
        if implicit_rsp {
            set &= !(1 << 4);
        }
        same("registers written", format!("{:016b}", ours.gpr_writes), format!("{set:016b}"))?;
        let moves = matches!(theirs.mnemonic(), Mnemonic::Add | Mnemonic::Sub | Mnemonic::Lea) || implicit_rsp;
        for op in 0..theirs.op_count() {
            if theirs.op_kind(op) == OpKind::Register {
                let register = theirs.op_register(op);
                let stack = register.is_gpr() && register.full_register() == Register::RSP;
                same("rsp named", stack && !(moves && register == Register::RSP), false)?;
            }
        }
        Ok(())
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, ours: T, theirs: T) -> Result<(), String> {
    if ours == theirs { Ok(()) } else { Err(format!("{what}: {ours:?} against {theirs:?}")) }
}

fn kind(access: OpAccess) -> (bool, bool) {
    match access {
        OpAccess::Read | OpAccess::CondRead => (true, false),
        OpAccess::Write | OpAccess::CondWrite => (false, true),
        OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
        _ => (false, false),
    }
}

fn number(memory: &MemoryOperand, register: Register) -> Result<Option<u32>, String> {
    match register {
        Register::None => Ok(None),
        r if r.is_gpr32() && !memory.wide || r.is_gpr64() && memory.wide => Ok(Some(r.number() as u32)),
        r => Err(format!("address register {r:?}")),
    }
}

fn flow(theirs: &Instruction) -> Flow {
    let rel = || (theirs.near_branch_target().wrapping_sub(theirs.next_ip())) as i32;
    let disp = theirs.memory_displacement32().cast_signed();
    match theirs.flow_control() {
        FlowControl::ConditionalBranch => Flow::Conditional(rel()),
        FlowControl::UnconditionalBranch => Flow::Jump(rel()),
        FlowControl::Call => Flow::Call(rel()),
        FlowControl::IndirectCall => Flow::TableCall { mask: 0, disp },
        FlowControl::IndirectBranch => Flow::TableJump { mask: 0, disp },
        FlowControl::Return => Flow::Return,
        FlowControl::Exception => Flow::Trap,
        FlowControl::Next => Flow::Next,
        other => panic!("{other:?} accepted"),
    }
}

/// Extensions that the checker derives from more than CPUID.
const OTHER: u64 = Features::NT.0 | Features::LOCK.0 | Features::CONTROL.0;

fn features(ours: Features, theirs: &Instruction) -> Result<(), String> {
    // CPUID calls these SSE, but every x86-64 processor has them and they touch no vector register; `wait` is x87's.
    let baseline = matches!(
        theirs.mnemonic(),
        Mnemonic::Lfence
            | Mnemonic::Mfence
            | Mnemonic::Sfence
            | Mnemonic::Movnti
            | Mnemonic::Prefetchnta
            | Mnemonic::Prefetcht0
            | Mnemonic::Prefetcht1
            | Mnemonic::Prefetcht2
    );
    if theirs.mnemonic() == Mnemonic::Wait {
        return same("extensions", ours, Features::X87);
    }
    let mut expected = Features::NONE;
    for feature in theirs.cpuid_features() {
        expected = expected.with(match feature {
            CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387 => Features::X87,
            CpuidFeature::MMX => Features::MMX,
            CpuidFeature::SSE | CpuidFeature::SSE2 if !baseline => Features::SSE2,
            CpuidFeature::SSE3 => Features::SSE3,
            CpuidFeature::SSSE3 => Features::SSSE3,
            CpuidFeature::SSE4_1 => Features::SSE41,
            CpuidFeature::SSE4_2 => Features::SSE42,
            CpuidFeature::POPCNT => Features::POPCNT,
            CpuidFeature::AES => Features::AES,
            CpuidFeature::PCLMULQDQ => Features::PCLMUL,
            CpuidFeature::SHA => Features::SHA,
            CpuidFeature::GFNI => Features::GFNI,
            CpuidFeature::AVX => Features::AVX,
            CpuidFeature::AVX2 => Features::AVX2,
            CpuidFeature::FMA => Features::FMA,
            CpuidFeature::F16C => Features::F16C,
            CpuidFeature::VAES => Features::VAES,
            CpuidFeature::VPCLMULQDQ => Features::VPCLMUL,
            CpuidFeature::AVX_VNNI => Features::AVXVNNI,
            CpuidFeature::BMI1 => Features::BMI1,
            CpuidFeature::BMI2 => Features::BMI2,
            CpuidFeature::LZCNT => Features::LZCNT,
            CpuidFeature::ADX => Features::ADX,
            CpuidFeature::MOVBE => Features::MOVBE,
            CpuidFeature::CMPXCHG16B => Features::CX16,
            CpuidFeature::PREFETCHW => Features::PREFETCHW,
            _ => Features::NONE,
        });
    }
    // Extensions that the checker implies (AVX with AVX2, SSE2 with SSE3) or that instructions need only for their fixed registers.
    let implied = Features::SSE2.0 | Features::AVX.0 | Features::MMX.0;
    let missing = expected.0 & !ours.0;
    let extra = ours.0 & !(expected.0 | OTHER | implied);
    if missing | extra == 0 { Ok(()) } else { Err(format!("extensions: missing {missing:#x}, extra {extra:#x}")) }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x} ")).collect::<String>().trim_end().to_owned()
}

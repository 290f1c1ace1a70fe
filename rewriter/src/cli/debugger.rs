//! `cordon run --gdb`: tells a debugger, through the GDB JIT interface (gdb manual, "JIT Compilation Interface"), where the loader put a handler's
//! text. It lies in memory of the host, of which no handler can read a byte.

use cordon_checker::layout::TEXT_VADDR;
use gimli::write::{Address, Dwarf, EndianVec, FrameTable, Sections};
use gimli::{DebugFrame, EndianSlice, LittleEndian, SectionId};
use object::build::elf::{Builder, SectionData};
use std::error::Error;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// One file in memory, as the interface lays it out. It stays to the end of the process.
#[repr(C)]
struct CodeEntry {
    next: AtomicPtr<CodeEntry>,
    previous: AtomicPtr<CodeEntry>,
    file: *const u8,
    size: u64,
}

/// Where the debugger looks: `action` and `entry` say what changed, `first` begins the list.
#[repr(C)]
struct Descriptor {
    version: u32,
    action: AtomicU32,
    entry: AtomicPtr<CodeEntry>,
    first: AtomicPtr<CodeEntry>,
}

const REGISTERED: u32 = 1;

#[unsafe(no_mangle)]
static __jit_debug_descriptor: Descriptor = Descriptor {
    version: 1,
    action: AtomicU32::new(0),
    entry: AtomicPtr::new(ptr::null_mut()),
    first: AtomicPtr::new(ptr::null_mut()),
};

/// The debugger has a breakpoint here and reads the descriptor.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn __jit_debug_register_code() {
    std::hint::black_box(&__jit_debug_descriptor);
}

/// Announces the image `file`, whose text the loader put to address `text`. For the one image of the process.
///
/// # Errors
/// If its symbols or its debug information make no sense.
pub fn announce(file: &[u8], text: u64) -> Result<(), String> {
    let symbols = moved(file, text).map_err(|e| e.to_string())?.leak();
    let none = || AtomicPtr::new(ptr::null_mut());
    let entry = CodeEntry { next: none(), previous: none(), file: symbols.as_ptr(), size: symbols.len() as u64 };
    let entry = ptr::from_mut(Box::leak(Box::new(entry)));
    __jit_debug_descriptor.first.store(entry, Ordering::Release);
    __jit_debug_descriptor.entry.store(entry, Ordering::Release);
    __jit_debug_descriptor.action.store(REGISTERED, Ordering::Release);
    __jit_debug_register_code();
    Ok(())
}

/// The image as an ELF file whose text addresses are those of this process; data keep their window offsets.
fn moved(file: &[u8], text: u64) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut image = Builder::read64(file)?;
    // Whatever is not in the window is text.
    let place = |address: u64| if address < TEXT_VADDR { address } else { address.wrapping_sub(TEXT_VADDR).wrapping_add(text) };
    image.segments.iter_mut().for_each(|segment| segment.delete = true);
    image.symbols.iter_mut().for_each(|symbol| symbol.st_value = place(symbol.st_value));
    let debug = debug_sections(&image, &place)?;
    for section in &mut image.sections {
        if section.is_alloc() {
            section.sh_addr = place(section.sh_addr);
        }
        if let Some((_, bytes)) = debug.iter().find(|(name, _)| *name == section.name.as_slice()) {
            section.data = SectionData::Data(bytes.clone().into());
        }
    }
    let mut bytes = Vec::new();
    image.write(&mut bytes)?;
    Ok(bytes)
}

/// A section's name and its bytes.
type Content = (&'static [u8], Vec<u8>);

/// The debug information with other addresses.
fn debug_sections(image: &Builder<'_>, place: &dyn Fn(u64) -> u64) -> Result<Vec<Content>, Box<dyn Error>> {
    let content = |id: SectionId| {
        let section = image.sections.iter().find(|s| s.name.as_slice() == id.name().as_bytes());
        let bytes = section.and_then(|s| if let SectionData::Data(bytes) = &s.data { Some(bytes.as_slice()) } else { None });
        EndianSlice::new(bytes.unwrap_or_default(), LittleEndian)
    };
    let address = |address| Some(Address::Constant(place(address)));
    let old = gimli::Dwarf::load(|id| Ok::<_, gimli::Error>(content(id)))?;
    let mut frames = DebugFrame::from(content(SectionId::DebugFrame));
    frames.set_address_size(8);
    let mut sections = Sections::new(EndianVec::new(LittleEndian));
    Dwarf::from(&old, &address)?.write(&mut sections)?;
    FrameTable::from(&frames, &address)?.write_debug_frame(&mut sections.debug_frame)?;
    let mut made = Vec::new();
    sections.for_each(|id, bytes| {
        made.push((id.name().as_bytes(), bytes.slice().to_vec()));
        Ok::<_, gimli::Error>(())
    })?;
    Ok(made)
}

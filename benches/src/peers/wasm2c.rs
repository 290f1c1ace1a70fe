//! wasm2c: WebAssembly translated to C and compiled by gcc, with guard pages in place of checks.

use anyhow::{Context as _, Result};
use cordon_fixtures::compile::{Builder, run_tool};
use cordon_fixtures::native::NativeRunner;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use wasmi::{ExternType, Module, ValType};

/// Where Debian's wabt puts the runtime.
const RUNTIME: &str = "/usr/share/wabt/wasm2c";

/// Translates and links a module with the harness's native half; entries have their names, as everywhere.
///
/// # Errors
/// If wabt or gcc are missing or say no.
pub fn runner(folder: &Path, builder: &Builder, module: &Path) -> Result<NativeRunner> {
    let stem = module.file_stem().context("modules have names")?.to_string_lossy().replace('-', "_");
    let (source, shim) = (folder.join(format!("{stem}_w2c.c")), folder.join(format!("{stem}_shim.c")));
    run_tool(Command::new("wasm2c").args(["-n", "cordon"]).arg(module).arg("-o").arg(&source))?;
    std::fs::write(&shim, self::shim(&std::fs::read(module)?, &stem)?)?;
    let mut objects = Vec::new();
    for file in [&source, &shim, &Path::new(RUNTIME).join("wasm-rt-impl.c")] {
        let name = file.file_stem().context("files have names")?.to_string_lossy().into_owned();
        let object = folder.join(format!("{stem}-{name}-w2c.o"));
        let mut command = Command::new("gcc");
        command.args(["-O2", "-w", "-fno-math-errno", "-ffp-contract=off", "-DWASM_RT_MEMCHECK_SIGNAL_HANDLER=1"]);
        run_tool(command.arg("-I").arg(RUNTIME).arg("-I").arg(folder).arg("-c").arg(file).arg("-o").arg(&object))?;
        objects.push(object);
    }
    NativeRunner::link(builder, &objects)
}

/// One C function for each entry that turns the harness's pointer into an offset, and the harness's buffer inside the module's memory.
fn shim(module: &[u8], stem: &str) -> Result<String> {
    let module = Module::new(&super::wasmi::engine(), module)?;
    let mut text = format!("#include \"{stem}_w2c.h\"\nstatic Z_cordon_instance_t it;\n");
    text += "u8 *cordon_native_buffer(void)\n{\n\twasm_rt_init();\n\tZ_cordon_init_module();\n\tZ_cordon_instantiate(&it);\n\
             \treturn Z_cordonZ_memory(&it)->data + Z_cordonZ_cordon_buffer(&it);\n}\n";
    for export in module.exports() {
        let ExternType::Func(kind) = export.ty() else { continue };
        let name = export.name();
        if kind.params().len() < 2 {
            continue;
        }
        let cast = |kind: &ValType| if *kind == ValType::I64 { "u64" } else { "u32" };
        let words: Vec<String> = kind.params().iter().enumerate().skip(1).map(|(i, k)| format!("({})a{i}", cast(k))).collect();
        let parameters: Vec<String> = (1..kind.params().len()).map(|i| format!("u64 a{i}")).collect();
        writeln!(
            text,
            "long {name}(void *ctx, {})\n{{\n\treturn (s32)Z_cordonZ_{name}(&it, (u32)((u8 *)ctx - it.w2c_memory.data), {});\n}}",
            parameters.join(", "),
            words.join(", ")
        )?;
    }
    Ok(text)
}

# Turns rustc's assembly (ELF, AT&T syntax) into what kbuild assembles: no unwind or debug sections, direct calls instead of calls
# through the global offset table, the kernel's RET for its return thunks. Fails on what kernel code may not have.
BEGIN { print "#include <linux/linkage.h>" }
/^[ \t]*\.(cfi_|loc[ \t]|file[ \t]|ident|addrsig)/ { next }
/^[ \t]*\.section/ { dropped = ($2 ~ /^"?\.(debug|eh_frame|gcc_except|note\.GNU-stack|llvm)/) }
/^[ \t]*\.(text|data|bss)[ \t]*$/ { dropped = 0 }
dropped { next }
/^[ \t]*\.(ascii|asciz)/ { print; next }
{
    gsub(/\*memcpy@GOTPCREL\(%rip\)/, "memcpy")
    gsub(/\*memmove@GOTPCREL\(%rip\)/, "memmove")
    gsub(/\*memset@GOTPCREL\(%rip\)/, "memset")
    gsub(/\*memcmp@GOTPCREL\(%rip\)/, "memcmp")
    gsub(/\*bcmp@GOTPCREL\(%rip\)/, "memcmp")
}
/^[ \t]*retq?$/ { print "\tRET"; next }
/@GOT|%[xyz]mm|%st|%fs|%gs|[ \t]-[0-9]+\(%rsp|(call|jmp)q?[ \t]+\*|cordon_kmod_panic_is_reachable/ {
    printf "rust.awk: kernel code may not have: %s\n", $0 > "/dev/stderr"
    bad = 1
}
/^[ \t]*subq[ \t]+\$[0-9]+, %rsp$/ {
    bytes = $2
    gsub(/[$,]/, "", bytes)
    if (bytes + 0 > 1024) { printf "rust.awk: a frame of %d bytes\n", bytes > "/dev/stderr"; bad = 1 }
}
{ print }
END { exit bad }

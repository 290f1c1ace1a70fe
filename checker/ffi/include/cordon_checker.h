/* Cordon's checker for C hosts. No allocation, no global state, no libc; every function may run in any context.
 * Link libcordon_checker_ffi.a with --gc-sections: a panic that could be reached would leave
 * `cordon_checker_panic_is_reachable` undefined and fail the link.
 *
 *     cargo build --release --manifest-path checker/ffi/Cargo.toml    (or with --target x86_64-unknown-none)
 *     cc -I checker/ffi/include host.c libcordon_checker_ffi.a -Wl,--gc-sections
 *
 * cordon_check needs at most 1312 bytes of stack (checker/tests/ffi.rs adds them up). examples/check_image.c checks an image file,
 * examples/check.c text from the command line. A loader keeps the rules of "Trusted besides" in checker/AUDIT.md: above all it checks the
 * very bytes that will run, where nothing can write to them any more. */
#ifndef CORDON_CHECKER_H
#define CORDON_CHECKER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum cordon_host { CORDON_HOST_USER = 0, CORDON_HOST_KERNEL = 1 };

/* What images must prove besides the sandbox; bits of cordon_policy.mode. */
enum cordon_mode {
    CORDON_MODE_MATCH = 2,   /* no access without a check of its 64-bit address */
    CORDON_MODE_METERED = 4, /* every instruction is paid for */
    CORDON_MODE_STORES = 8,  /* less is enough: loads may be left alone (user hosts only) */
};

/* The host's terms: a set of extension bits (checker/src/policy.rs), greatest stack depth in bytes, a multiple of 8, the least mode. */
struct cordon_policy {
    uint32_t host; /* enum cordon_host */
    uint32_t max_depth;
    uint64_t features;
    uint64_t mode; /* a set of enum cordon_mode; 0 = sandbox */
};

enum cordon_verdict {
    CORDON_ACCEPTED = 0,
    CORDON_REJECTED = 1,     /* text: cordon_report.offset and .rule tell */
    CORDON_BAD_NOTE = 2,     /* the note has no valid form */
    CORDON_BAD_LAYOUT = 3,   /* the note's layout does not hold for this policy */
    CORDON_BAD_ARGUMENT = 4, /* null pointer, unknown host or mode */
};

struct cordon_report {
    uint32_t offset;       /* rejected: byte offset in the text */
    uint32_t rule;         /* rejected: number of the rule in SPEC.md */
    uint64_t features;     /* accepted: extensions that the text uses */
    uint32_t max_depth;    /* accepted: greatest static stack depth, bytes */
    uint32_t instructions; /* accepted: number of instruction starts */
};

/* The policies that the checker calls default. An unknown host is left in the policy, which cordon_check then refuses. */
struct cordon_policy cordon_default_policy(uint32_t host);

/* Scratch words that cordon_check needs. */
size_t cordon_scratch_words(size_t text_len);

/* Judges `text` with the layout of the image note's descriptor. `scratch` must be 8-byte aligned and hold
 * cordon_scratch_words(text_len) words; their content does not matter. Returns an enum cordon_verdict. */
int cordon_check(const uint8_t *text, size_t text_len, const uint8_t *note, size_t note_len,
                 const struct cordon_policy *policy, uint64_t *scratch, size_t scratch_words, struct cordon_report *report);

/* First instruction start at or after `from` in accepted text, or text_len. */
size_t cordon_next_start(const uint64_t *scratch, size_t text_len, size_t from);

/* Copies the rule's sentence, cut to `size` - 1 bytes and terminated; returns its whole length, 0 for an unknown rule. */
size_t cordon_rule_text(uint32_t rule, char *buffer, size_t size);

#ifdef __cplusplus
}
#endif
#endif

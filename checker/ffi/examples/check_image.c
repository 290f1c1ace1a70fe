/* Checks a Cordon image file with the checker's C interface and prints the verdict: check_image IMAGE [user|kernel]
 *
 * Nothing in the file is believed: every offset and length is compared with the file's size before it is used. As checker/loader does, it wants
 * one executable segment at the text address and takes the first note named Cordon. Exit code: 0 accepted, 1 rejected or no image, 2 usage. */
#include "cordon_checker.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EHDR = 64, PHDR = 56, PT_LOAD = 1, PT_NOTE = 4, PF_X = 1, PF_R = 4, ET_DYN = 3, EM_X86_64 = 62, MAX_PHDRS = 64 };
static const uint64_t TEXT_ADDRESS = 0x200000000;

struct bytes {
    const uint8_t *start;
    size_t len;
};

struct image {
    struct bytes text, note;
};

/* The little-endian number of `size` bytes at `at`, which the caller has checked to be inside. */
static uint64_t number(const uint8_t *at, int size)
{
    uint64_t value = 0;
    while (size--)
        value = value << 8 | at[size];
    return value;
}

/* file[offset .. offset + len], or a null start if that is not inside. */
static struct bytes part(struct bytes file, uint64_t offset, uint64_t len)
{
    struct bytes none = {NULL, 0}, found;
    if (offset > file.len || len > file.len - offset)
        return none;
    found.start = file.start + offset;
    found.len = len;
    return found;
}

/* The descriptor of the image note in a note segment: words name size, descriptor size, type; both parts padded to 4 bytes. */
static struct bytes image_note(struct bytes segment)
{
    struct bytes none = {NULL, 0}, name, descriptor;
    uint64_t at = 0, name_len, len, type;
    while (segment.len - at >= 12) {
        name_len = number(segment.start + at, 4);
        len = number(segment.start + at + 4, 4);
        type = number(segment.start + at + 8, 4);
        name = part(segment, at + 12, name_len);
        at += 12 + (name_len + 3) / 4 * 4;
        descriptor = part(segment, at, len);
        if (!name.start || !descriptor.start)
            return none;
        if (type == 1 && name_len == 7 && memcmp(name.start, "Cordon", 7) == 0)
            return descriptor;
        at += (len + 3) / 4 * 4;
        if (at > segment.len)
            return none;
    }
    return none;
}

/* Finds text and note; gives what is wrong, or null. */
static const char *take_apart(struct bytes file, struct image *image)
{
    static const uint8_t magic[7] = {0x7f, 'E', 'L', 'F', 2, 1, 1};
    struct bytes table, segment;
    const uint8_t *header;
    uint64_t count, i, type, flags;

    memset(image, 0, sizeof *image);
    if (file.len < EHDR || memcmp(file.start, magic, sizeof magic) != 0)
        return "not a little-endian ELF64 file";
    if (number(file.start + 16, 2) != ET_DYN || number(file.start + 18, 2) != EM_X86_64)
        return "not an x86-64 ET_DYN file";
    count = number(file.start + 56, 2);
    if (number(file.start + 54, 2) != PHDR || count > MAX_PHDRS)
        return "program headers of a wrong size or number";
    table = part(file, number(file.start + 32, 8), count * PHDR);
    if (!table.start)
        return "program headers outside the file";
    for (i = 0; i < count; i++) {
        header = table.start + i * PHDR;
        type = number(header, 4);
        flags = number(header + 4, 4);
        segment = part(file, number(header + 8, 8), number(header + 32, 8));
        if (type == PT_LOAD && flags & PF_X) {
            if (image->text.start)
                return "more than one executable segment";
            if (flags != (PF_R | PF_X) || number(header + 16, 8) != TEXT_ADDRESS || number(header + 40, 8) != segment.len)
                return "an executable segment with wrong flags, address or size";
            if (!segment.start)
                return "the executable segment lies outside the file";
            image->text = segment;
        } else if (type == PT_NOTE && !image->note.start && segment.start) {
            image->note = image_note(segment);
        }
    }
    if (!image->text.start)
        return "no executable segment";
    return image->note.start ? NULL : "no image note";
}

/* The whole file, or a null start. */
static struct bytes read_file(const char *path)
{
    struct bytes none = {NULL, 0}, file;
    uint8_t *start = NULL;
    long size;
    FILE *stream = fopen(path, "rb");
    if (!stream)
        return none;
    if (fseek(stream, 0, SEEK_END) != 0 || (size = ftell(stream)) < 0 || fseek(stream, 0, SEEK_SET) != 0 ||
        !(start = malloc((size_t)size + 1)) || fread(start, 1, (size_t)size, stream) != (size_t)size) {
        free(start);
        start = NULL;
        size = 0;
    }
    fclose(stream);
    file.start = start;
    file.len = (size_t)size;
    return file;
}

int main(int argc, char **argv)
{
    static const char *const verdicts[] = {"accepted", "rejected", "bad-note", "bad-layout", "bad-argument"};
    struct cordon_policy policy;
    struct cordon_report report;
    struct image image;
    struct bytes file;
    uint64_t *scratch;
    size_t words;
    const char *wrong;
    char sentence[128];
    int kernel = argc == 3 && strcmp(argv[2], "kernel") == 0, verdict;

    if (argc < 2 || argc > 3 || (argc == 3 && !kernel && strcmp(argv[2], "user") != 0)) {
        fprintf(stderr, "usage: check_image IMAGE [user|kernel]\n");
        return 2;
    }
    file = read_file(argv[1]);
    if (!file.start) {
        fprintf(stderr, "%s: cannot be read\n", argv[1]);
        return 2;
    }
    wrong = take_apart(file, &image);
    if (wrong) {
        printf("no image: %s\n", wrong);
        free((void *)file.start);
        return 1;
    }
    words = cordon_scratch_words(image.text.len);
    scratch = calloc(words ? words : 1, sizeof *scratch);
    if (!scratch) {
        fprintf(stderr, "no memory for %zu words\n", words);
        return 2;
    }
    policy = cordon_default_policy(kernel ? CORDON_HOST_KERNEL : CORDON_HOST_USER);
    verdict = cordon_check(image.text.start, image.text.len, image.note.start, image.note.len, &policy, scratch, words, &report);
    if (verdict == CORDON_ACCEPTED) {
        printf("accepted: text %zu bytes, %u instructions, depth %u, features %#llx\n", image.text.len, report.instructions,
               report.max_depth, (unsigned long long)report.features);
    } else if (verdict == CORDON_REJECTED) {
        cordon_rule_text(report.rule, sentence, sizeof sentence);
        printf("rejected: offset %#x: R%u %s\n", report.offset, report.rule, sentence);
    } else {
        printf("%s\n", verdicts[verdict]);
    }
    free(scratch);
    free((void *)file.start);
    return verdict == CORDON_ACCEPTED ? 0 : 1;
}

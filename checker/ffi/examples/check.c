/* Judges hex text given as arguments with the note in a file: check NOTE user|kernel[:MODE] BYTE... (MODE: sum of enum cordon_mode) */
#include "cordon_checker.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
    static uint8_t note[1 << 16], text[4096];
    static uint64_t scratch[4096];
    struct cordon_report report;
    struct cordon_policy policy;
    char sentence[128];
    size_t length = 0, note_length, at;
    FILE *file;
    int verdict, i;

    if (argc < 3 || argc > 3 + (int)sizeof text || !(file = fopen(argv[1], "rb")))
        return 2;
    note_length = fread(note, 1, sizeof note, file);
    fclose(file);
    policy = cordon_default_policy(strncmp(argv[2], "kernel", 6) == 0 ? CORDON_HOST_KERNEL : CORDON_HOST_USER);
    if (strchr(argv[2], ':'))
        policy.mode = strtoull(strchr(argv[2], ':') + 1, NULL, 10);
    for (i = 3; i < argc; i++)
        text[length++] = (uint8_t)strtoul(argv[i], NULL, 16);
    if (cordon_scratch_words(length) > sizeof scratch / sizeof *scratch)
        return 2;
    verdict = cordon_check(text, length, note, note_length, &policy, scratch, sizeof scratch / sizeof *scratch, &report);
    if (verdict == CORDON_ACCEPTED) {
        printf("accepted: %u instructions, depth %u, features %#llx, starts", report.instructions, report.max_depth,
               (unsigned long long)report.features);
        for (at = cordon_next_start(scratch, length, 0); at < length; at = cordon_next_start(scratch, length, at + 1))
            printf(" %zu", at);
        printf("\n");
    } else if (verdict == CORDON_REJECTED) {
        cordon_rule_text(report.rule, sentence, sizeof sentence);
        printf("rejected: offset %u, R%u %s\n", report.offset, report.rule, sentence);
    } else {
        printf("refused: %d\n", verdict);
    }
    return verdict;
}

/* Records (key=value, each ended by NUL), numbers, and lists of texts. */
#ifndef ROOTDISK_RECORDS_H
#define ROOTDISK_RECORDS_H

#include <stddef.h>
#include <stdint.h>

struct records { char *data; size_t length; };

/* The next record's value, its key in *key; NULL at the end. Start with *at = 0. */
const char *next_record(const struct records *, size_t *at, const char **key);

/* The value of the first record with that key, or NULL. */
const char *find_record(const struct records *, const char *key);

/* A decimal number of `length` digits, at most `most`. Returns 0, or -1 if it is not one. The only parser of numbers. */
int parse_number(const char *text, size_t length, uint64_t most, uint64_t *number);

/* Texts with a NULL at their end. The list is its owner's to free, the texts are not. */
struct list { char **items; size_t count, room; };

int append(struct list *, const char *text); /* 0, or -1 without memory */
int append_records(struct list *, const struct records *, const char *key);
int keep_last(struct list *env); /* of variables of one name the last value, in the place of the first */
#endif

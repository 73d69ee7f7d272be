/* Records, numbers, and lists of texts. */
#include "records.h"
#include <stdlib.h>
#include <string.h>

const char *next_record(const struct records *records, size_t *at, const char **key) {
    static char name[64];
    while (*at < records->length) {
        char *start = records->data + *at, *end = memchr(start, 0, records->length - *at);
        if (!end)
            return NULL;
        *at += end - start + 1;
        char *equals = strchr(start, '=');
        if (!equals || equals - start >= (int)sizeof name)
            continue;
        memcpy(name, start, equals - start);
        name[equals - start] = 0;
        *key = name;
        return equals + 1;
    }
    return NULL;
}

const char *find_record(const struct records *records, const char *wanted) {
    const char *key, *value;
    for (size_t at = 0; (value = next_record(records, &at, &key));)
        if (!strcmp(key, wanted))
            return value;
    return NULL;
}

int parse_number(const char *text, size_t length, uint64_t most, uint64_t *number) {
    uint64_t value = 0;
    for (size_t i = 0; i < length; i++) {
        uint64_t digit = (unsigned char)text[i] - '0'; /* other characters become large */
        if (digit > 9 || digit > most || value > (most - digit) / 10)
            return -1;
        value = value * 10 + digit;
    }
    *number = value;
    return length ? 0 : -1;
}

int append(struct list *list, const char *text) {
    if (list->count + 1 >= list->room) {
        size_t room = list->room ? 2 * list->room : 16;
        char **items = realloc(list->items, room * sizeof *items);
        if (!items)
            return -1;
        list->items = items;
        list->room = room;
    }
    list->items[list->count++] = (char *)text;
    list->items[list->count] = NULL;
    return 0;
}

int append_records(struct list *list, const struct records *records, const char *wanted) {
    const char *key, *value;
    for (size_t at = 0; (value = next_record(records, &at, &key));)
        if (!strcmp(key, wanted) && append(list, value))
            return -1;
    return 0;
}

/* In one pass, over a table of the names. */
int keep_last(struct list *env) {
    size_t slots = 64, kept = 0;
    while (slots < 2 * env->count)
        slots *= 2;
    size_t *table = calloc(slots, sizeof *table); /* a place in the list and one; 0: none */
    if (!table)
        return -1;
    for (size_t i = 0; i < env->count; i++) {
        size_t width = strcspn(env->items[i], "="), at = 5381;
        for (size_t j = 0; j < width; j++)
            at = at * 33 + (unsigned char)env->items[i][j];
        for (at %= slots; table[at]; at = (at + 1) % slots) {
            const char *other = env->items[table[at] - 1];
            if (!strncmp(other, env->items[i], width) && (other[width] == '=' || !other[width]))
                break;
        }
        if (!table[at])
            table[at] = ++kept;
        env->items[table[at] - 1] = env->items[i];
    }
    env->count = kept;
    if (env->items)
        env->items[kept] = NULL;
    free(table);
    return 0;
}

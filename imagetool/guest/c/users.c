/* Users and groups: passwd(5) and group(5) of the image, which may hold anything. */
#include "users.h"
#include "files.h"
#include "records.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { ID_FIELD = 2, GROUP_FIELD = 3, HOME_FIELD = 5, MEMBERS_FIELD = 3, SHOWN = 80 };

/* An account file's text; empty if there is none. NULL and why if it cannot be read. */
static char *read_accounts(const char *path, struct why *why) {
    size_t length;
    char *data = read_file(path, ACCOUNTS_MOST, &length);
    if (data || (errno != ENOENT && errno != ENOTDIR)) {
        if (!data)
            explain(why, "%s of the image cannot be read: %s", path, errno == EINVAL ? "it is not a plain file" : strerror(errno));
        return data;
    }
    if (!(data = calloc(1, 1)))
        explain(why, "no memory");
    return data;
}

/* The next line of `*text`, cut off there; NULL at the end. */
static char *next_line(char **text) {
    char *line = *text;
    if (!line || !*line)
        return NULL;
    char *end = strchr(line, '\n');
    if (end)
        *end++ = 0;
    *text = end;
    return line;
}

/* Field number `n` of a line and its width; NULL if there are not so many. */
static const char *field(const char *line, int n, size_t *width) {
    while (n-- && line)
        if ((line = strchr(line, ':')))
            line++;
    if (line)
        *width = strcspn(line, ":");
    return line;
}

static int parse_id(const char *line, int n, uint32_t *id) {
    size_t width;
    uint64_t number;
    const char *text = field(line, n, &width);
    if (!text || parse_number(text, width, ID_MOST, &number))
        return -1;
    *id = number;
    return 0;
}

/* Whether a line of a file is of `text`: 2 if by its name, 1 if by its number. */
static int is_of(const char *line, const char *text, size_t width, const uint64_t *number) {
    uint32_t id;
    if (!strncmp(line, text, width) && line[width] == ':')
        return 2;
    return number && !parse_id(line, ID_FIELD, &id) && id == *number;
}

/* The line of an account file that a name or a number means: by its name if there is one. NULL for none. */
static char *find_line(char *data, const char *text, size_t width, const uint64_t *number) {
    char *found = NULL;
    for (char *line; width && (line = next_line(&data));) {
        int how = is_of(line, text, width, number);
        if (how == 2)
            return line;
        if (how && !found)
            found = line;
    }
    return found;
}

static int refuse_id(struct why *why, const char *path, const char *what, const char *line) {
    return explain(why, "%s of the image: %s %.*s has an id that is not a number from 0 to 4294967294", path, what,
                   (int)(strcspn(line, ":") > SHOWN ? SHOWN : strcspn(line, ":")), line);
}

/* An id as it is given: *number is set if it is one. -1 for a number that is out of range. */
static int read_id(const char *text, size_t width, uint64_t *number, const uint64_t **is_number, const char *what, struct why *why) {
    *is_number = NULL;
    if (width && strspn(text, "0123456789") >= width) {
        if (parse_number(text, width, ID_MOST, number))
            return explain(why, "%s %.*s is out of range: 0 to 4294967294", what, (int)(width > SHOWN ? SHOWN : width), text);
        *is_number = number;
    }
    return 0;
}

static int find_group(const char *text, struct user *user, struct why *why) {
    size_t width = strlen(text);
    uint64_t number = 0;
    const uint64_t *is_number;
    if (read_id(text, width, &number, &is_number, "group", why))
        return -1;
    char *data = read_accounts("/etc/group", why);
    if (!data)
        return -1;
    char *line = find_line(data, text, width, is_number);
    int failed = 0;
    if (line && parse_id(line, ID_FIELD, &user->gid))
        failed = refuse_id(why, "/etc/group", "group", line);
    else if (!line && is_number)
        user->gid = number;
    else if (!line)
        failed = explain(why, "the image has no group %.*s", SHOWN, text);
    free(data);
    return failed;
}

static int is_member(const char *line, const char *name) {
    size_t width, length = strlen(name);
    const char *names = field(line, MEMBERS_FIELD, &width);
    for (const char *at = names, *end = names ? names + width : NULL; at && at < end;) {
        size_t part = strcspn(at, ",:");
        if (part == length && !memcmp(at, name, length))
            return 1;
        at += part + 1;
    }
    return 0;
}

/* Room is made at powers of two. */
static int add_group(struct user *user, gid_t id, struct why *why) {
    if (user->count == GROUPS_MOST)
        return explain(why, "the user is in more than %d groups", GROUPS_MOST);
    if (!(user->count & (user->count - 1))) {
        gid_t *more = realloc(user->groups, (user->count ? 2 * user->count : 1) * sizeof *more);
        if (!more)
            return explain(why, "no memory");
        user->groups = more;
    }
    user->groups[user->count++] = id;
    return 0;
}

/* The groups whose member `name` is. A line without a number, as NIS has it, is skipped. */
static int find_groups(const char *name, struct user *user, struct why *why) {
    char *data = read_accounts("/etc/group", why), *rest = data;
    int failed = data ? 0 : -1;
    for (char *line; !failed && (line = next_line(&rest));) {
        uint32_t id;
        size_t width;
        const char *number = field(line, ID_FIELD, &width);
        if (!is_member(line, name) || !width || strspn(number, "0123456789") < width)
            continue;
        if (parse_id(line, ID_FIELD, &id))
            failed = refuse_id(why, "/etc/group", "group", line);
        else if (id != user->gid)
            failed = add_group(user, id, why);
    }
    free(data);
    return failed;
}

/* What the line of passwd says. */
static int take_account(char *line, struct user *user, struct why *why) {
    size_t width;
    const char *home = field(line, HOME_FIELD, &width);
    if (parse_id(line, ID_FIELD, &user->uid) || parse_id(line, GROUP_FIELD, &user->gid))
        return refuse_id(why, "/etc/passwd", "user", line);
    if (home && width >= sizeof user->home)
        return explain(why, "/etc/passwd of the image: the home directory of %.*s is too long", (int)strcspn(line, ":"), line);
    if (home && width) {
        memcpy(user->home, home, width);
        user->home[width] = 0;
    }
    return 0;
}

int find_user(const char *text, struct user *user, struct why *why) {
    const char *group = strchr(text, ':');
    size_t width = strcspn(text, ":");
    uint64_t number = 0;
    const uint64_t *is_number;
    *user = (struct user){.home = "/"};
    if (!width)
        width = 1, text = "0";
    if (read_id(text, width, &number, &is_number, "user", why))
        return -1;
    char *data = read_accounts("/etc/passwd", why);
    if (!data)
        return -1;
    char *line = find_line(data, text, width, is_number);
    int failed = 0;
    if (line)
        failed = take_account(line, user, why);
    else if (is_number)
        user->uid = number;
    else
        failed = explain(why, "the image has no user %.*s", (int)(width > SHOWN ? SHOWN : width), text);
    int is_given = group && group[1]; /* such a group is the only one, as container runtimes have it */
    if (!failed && is_given)
        failed = find_group(group + 1, user, why);
    if (!failed)
        failed = add_group(user, user->gid, why); /* among the supplementary ones too, as in docker */
    if (!failed && !is_given && line) {
        line[strcspn(line, ":")] = 0;
        failed = find_groups(line, user, why);
    }
    free(data);
    if (failed)
        forget_user(user);
    return failed;
}

void forget_user(struct user *user) {
    free(user->groups);
    user->groups = NULL;
    user->count = 0;
}

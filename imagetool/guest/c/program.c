/* What a program is run with: the image's records, the build's and the slot's, and those of an EXEC. */
#include "program.h"
#include "files.h"
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ENV_MOST = 16 << 20 };

static int refuse_memory(struct why *why) { return explain(why, "no memory"); }

int parse_limit(const char *text, struct limit *limit, struct why *why) {
    static const struct { const char *name; int resource; } names[] = {
        {"core", RLIMIT_CORE}, {"cpu", RLIMIT_CPU}, {"data", RLIMIT_DATA}, {"fsize", RLIMIT_FSIZE}, {"locks", RLIMIT_LOCKS},
        {"memlock", RLIMIT_MEMLOCK}, {"msgqueue", RLIMIT_MSGQUEUE}, {"nice", RLIMIT_NICE}, {"nofile", RLIMIT_NOFILE},
        {"nproc", RLIMIT_NPROC}, {"rss", RLIMIT_RSS}, {"rtprio", RLIMIT_RTPRIO}, {"rttime", RLIMIT_RTTIME},
        {"sigpending", RLIMIT_SIGPENDING}, {"stack", RLIMIT_STACK}};
    uint64_t soft, hard;
    size_t width = strcspn(text, "\t");
    const char *first = text + width + !!text[width];
    const char *second = first + strcspn(first, "\t") + !!first[strcspn(first, "\t")];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strncmp(text, names[i].name, width) || names[i].name[width])
            continue;
        if (parse_number(first, strcspn(first, "\t"), UINT64_MAX, &soft) || parse_number(second, strlen(second), UINT64_MAX, &hard))
            break;
        *limit = (struct limit){names[i].resource, {soft, hard}};
        return 0;
    }
    return explain(why, "the runner sent a limit that is none: %.80s", text);
}

/* A later limit replaces an earlier one of the same kind. */
static int add_limit(struct program *program, struct limit limit) {
    int at = 0;
    while (at < program->limit_count && program->limits[at].resource != limit.resource)
        at++;
    if (at == LIMITS_MOST)
        return -1;
    program->limits[at] = limit;
    program->limit_count += at == program->limit_count;
    return 0;
}

/* Those of docker: many open files, and as many processes as there is room for. */
static int add_limits(struct program *program, const struct records *slot, struct why *why) {
    const char *key, *value;
    struct limit limit;
    add_limit(program, (struct limit){RLIMIT_NOFILE, {1 << 20, 1 << 20}});
    add_limit(program, (struct limit){RLIMIT_NPROC, {RLIM_INFINITY, RLIM_INFINITY}});
    for (size_t at = 0; (value = next_record(slot, &at, &key));)
        if (!strcmp(key, "ulimit") && (parse_limit(value, &limit, why) || add_limit(program, limit)))
            return -1;
    return 0;
}

/* Entrypoint and command: the slot's, else the image's. A new entrypoint clears the image's command. */
static int add_command(struct program *program, const struct records *process, const struct records *slot, struct why *why) {
    const struct records *entrypoint = slot, *command = slot;
    if (!find_record(slot, "entrypoint")) {
        entrypoint = find_record(slot, "noentrypoint") ? NULL : process;
        if (entrypoint && !find_record(slot, "cmd"))
            command = process;
    }
    if ((entrypoint && append_records(&program->argv, entrypoint, "entrypoint")) || append_records(&program->argv, command, "cmd"))
        return refuse_memory(why);
    if (!program->argv.count)
        return explain(why, "the image names no program: write one after the artifact");
    return 0;
}

/* TLS files of the build, then of the run. */
static int add_tls(struct list *env) {
    static const char *const tls[] = {
        "ROOTDISK_TLS_CA=/.rootdisk/tls/ca.pem", "ROOTDISK_TLS_CERT=/.rootdisk/tls/client.pem",
        "ROOTDISK_TLS_CA=/run/rootdisk/tls/ca.pem", "ROOTDISK_TLS_CERT=/run/rootdisk/tls/cert.pem",
        "ROOTDISK_TLS_KEY=/run/rootdisk/tls/key.pem"};
    for (size_t i = 0; i < sizeof tls / sizeof *tls; i++)
        if (!access(strchr(tls[i], '=') + 1, F_OK) && append(env, tls[i]))
            return -1;
    return 0;
}

/* A variable of the runner's own choice, if nobody has said anything else: neither in this case nor in the other. */
static int add_defaults(struct list *env, const struct records *slot) {
    const char *key, *value;
    size_t before = env->count;
    for (size_t at = 0; (value = next_record(slot, &at, &key));) {
        size_t width = strcspn(value, "=") + 1, i = 0;
        if (strcmp(key, "env-default"))
            continue;
        while (i < before && strncasecmp(env->items[i], value, width))
            i++;
        if (i == before && append(env, value))
            return -1;
    }
    return 0;
}

static int add_environment(struct program *program, const struct records *slot, struct why *why) {
    struct records built = {0};
    built.data = read_file("/.rootdisk/env", ENV_MOST, &built.length); /* it stays: the list points into it */
    if (!built.data && errno != ENOENT)
        return explain(why, "/.rootdisk/env cannot be read: %s", strerror(errno));
    if (add_tls(&program->env))
        return refuse_memory(why);
    for (size_t at = 0; built.data && at < built.length; at += strlen(built.data + at) + 1)
        if (append(&program->env, built.data + at))
            return refuse_memory(why);
    if (append_records(&program->env, slot, "env") || add_defaults(&program->env, slot) || keep_last(&program->env))
        return refuse_memory(why);
    return 0;
}

static const char *either(const struct records *slot, const struct records *process, const char *key, const char *usual) {
    const char *value = find_record(slot, key);
    if (!value)
        value = find_record(process, key);
    return value && *value ? value : usual;
}

/* By the slot, else by the build, else by the program's name. */
static int is_first(const struct records *slot, const struct records *process, int by_name) {
    const char *said = either(slot, process, "pid1", "");
    return *said ? !strcmp(said, "1") : by_name > 0;
}

int wants_to_be_first(const char *path) {
    static const char *const names[] = {
        "init", "systemd", "s6-svscan", "tini", "tini-static", "dumb-init", "catatonit", "docker-init", "openrc-init", "runit",
        "runit-init"};
    char target[PATH_MAX];
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    int found = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        found |= !strcmp(name, names[i]);
    if (found && realpath(path, target) && !strcmp(strrchr(target, '/') + 1, "systemd"))
        return 2;
    return found;
}

int main_program(struct program *program, const struct records *process, const struct records *slot, struct why *why) {
    if (add_command(program, process, slot, why) || add_environment(program, slot, why) || add_limits(program, slot, why))
        return -1;
    int by_name = wants_to_be_first(program->argv.items[0]);
    program->user = either(slot, process, "user", "");
    program->workdir = either(slot, process, "workdir", "/");
    program->term = either(slot, process, "term", "xterm");
    program->tty = find_record(slot, "tty") != NULL;
    program->input = find_record(slot, "stdin") != NULL;
    program->is_first = is_first(slot, process, by_name);
    program->makes_workdir = 1;
    program->stop_signal = parse_signal(either(slot, process, "stopsignal", "SIGTERM"));
    if (!program->stop_signal) /* as docker takes a name that it does not know */
        program->stop_signal = parse_signal("SIGTERM");
    /* SIGTERM means something else to systemd, and its images often do not say which signal they want. */
    if (by_name == 2 && program->is_first && program->stop_signal == parse_signal("SIGTERM"))
        program->stop_signal = parse_signal("SIGRTMIN+3");
    return 0;
}

int exec_program(struct program *program, const struct program *base, const struct records *records, struct why *why) {
    const char *value;
    *program = *base;
    program->argv = program->env = (struct list){0};
    for (size_t i = 0; i < base->env.count; i++)
        if (append(&program->env, base->env.items[i]))
            return refuse_memory(why);
    if (append_records(&program->env, records, "env") || keep_last(&program->env) || append_records(&program->argv, records, "cmd"))
        return refuse_memory(why);
    if (!program->argv.count)
        return explain(why, "it names no program");
    if ((value = find_record(records, "user")))
        program->user = value;
    if ((value = find_record(records, "workdir")) && *value)
        program->workdir = value, program->makes_workdir = 0;
    value = find_record(records, "term");
    program->term = value ? value : "xterm";
    program->tty = find_record(records, "tty") != NULL;
    program->input = find_record(records, "stdin") != NULL;
    program->is_detached = find_record(records, "detach") != NULL;
    program->is_first = 0;
    return 0;
}

void forget_program(struct program *program) {
    free(program->argv.items);
    free(program->env.items);
    program->argv = program->env = (struct list){0};
}

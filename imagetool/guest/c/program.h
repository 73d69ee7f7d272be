/* Programs: what they are run with, and how they are started. */
#ifndef ROOTDISK_PROGRAM_H
#define ROOTDISK_PROGRAM_H

#include "log.h"
#include "records.h"
#include <sys/resource.h>
#include <sys/types.h>

enum { RT_MIN = 34, SIGNAL_MOST = 64, LIMITS_MOST = 16 }; /* the kernel's first real-time signal; libraries keep some of them */

struct limit { int resource; struct rlimit range; };

/* Texts lie in the records that they came from; the lists are the program's. */
struct program {
    struct list argv, env;   /* env: what image, build, slot and exec say; the defaults are added when it starts */
    const char *user, *workdir, *term;
    int tty, input;
    int is_detached;         /* an EXEC of which only the start is of interest */
    int is_first;            /* it is process 1 of a PID namespace of its own */
    int makes_workdir;       /* if it is missing; else that is an error, as of docker exec -w */
    int stop_signal;
    struct limit limits[LIMITS_MOST];
    int limit_count;
};

/* The image's program with the build's and the slot's changes. 0, or -1 and why. */
int main_program(struct program *, const struct records *process, const struct records *slot, struct why *);

/* A program of an EXEC frame: its own command; the environment and user of `base` if it says nothing else. */
int exec_program(struct program *, const struct program *base, const struct records *, struct why *);
void forget_program(struct program *);

/* Starts a program. fds become its input, output and errors as the init sees them (-1: none). With
   `starts` it waits until the process has become the program, or cannot: which of the two. -1 and why on failure. */
pid_t spawn(const struct program *, int has_channel, int fds[3], int *starts, struct why *);

/* A signal as images name it: SIGTERM, TERM, SIGRTMIN+3 or a number; 0 if it is none. */
int parse_signal(const char *text);

/* A limit as in the slot: NAME, SOFT and HARD with tabs between. */
int parse_limit(const char *text, struct limit *, struct why *);

/* Whether a program is one that has to be process 1, by its name; 2 if it is systemd. */
int wants_to_be_first(const char *path);

/* Mounts a /proc of the caller's own PID namespace in place of the one that is there. 0, or -1 and errno. */
int mount_own_proc(void);
#endif

/* Preloaded into a process of the tests: counts and logs every operation that changes a file or a name under one
 * folder, and disturbs one of them. It does nothing before shim_arm() is called.
 *
 *   kill    SIGKILL instead of the operation      eintr   it fails once with EINTR, where the call may
 *   torn    half of a write, then SIGKILL         eio     it fails once with EIO
 *   short   half of a write, and half returned    enospc  it and all that needs space from then on fails with ENOSPC
 *
 * The log has a line for each operation: name, result, what was done to it ("-" for nothing), path, second path.
 * Whether this list of calls is complete is checked against strace (test_save_faults.py).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WAITS = 1, SPACE = 2, DATA = 4 }; /* may fail with EINTR; with ENOSPC; moves bytes, so it can be halved */
enum { LONGEST = 2 * PATH_MAX };

struct operation {
    const char *name;
    int traits, is_torn;
    const char *action;
    char path[LONGEST], second[LONGEST];
};

static char root[PATH_MAX], action[16];
static size_t root_length;
static int log_descriptor = -1, is_full;
static long target;
static atomic_long counter;

/* `index` counts from 1; 0 only records. `folder` is absolute and without links. */
void shim_arm(const char *folder, int descriptor, long index, const char *what) {
    snprintf(root, sizeof root, "%s", folder);
    snprintf(action, sizeof action, "%s", what);
    root_length = strlen(root);
    target = index, is_full = 0, counter = 0;
    log_descriptor = descriptor;
}

static void log_line(const struct operation *op, long result) {
    char line[2 * LONGEST + 64];
    int length = snprintf(line, sizeof line, "%s\t%ld\t%s\t%s\t%s\n", op->name, result, op->action, op->path, op->second);
    syscall(SYS_write, log_descriptor, line, length);
}

static void die(const struct operation *op, long result) {
    log_line(op, result);
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* 1 and the path relative to the root in `out` where it is under the root. */
static int is_inside(char *out, int folder, const char *path) {
    char whole[LONGEST], link[64];
    ssize_t length = 0;
    if (path == NULL || path[0] != '/') {
        snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
        length = syscall(SYS_readlink, link, whole, PATH_MAX);
        if (length < 0) return 0;
        if (path != NULL) whole[length++] = '/';
    }
    snprintf(whole + length, sizeof whole - length, "%s", path == NULL ? "" : path);
    if (strncmp(whole, root, root_length) != 0) return 0;
    if (whole[root_length] != '/' && whole[root_length] != 0) return 0;
    snprintf(out, LONGEST, "%s", whole[root_length] ? whole + root_length + 1 : ".");
    return 1;
}

static int is_watched(struct operation *op, const char *name, int traits, int folder, const char *path) {
    if (log_descriptor < 0) return 0;
    int before = errno;
    op->name = name, op->traits = traits, op->is_torn = 0, op->action = "-", op->second[0] = 0;
    int inside = is_inside(op->path, folder, path);
    errno = before;
    return inside;
}

/* The same for a call with two paths, of which one may be outside. */
static int are_watched(struct operation *op, const char *name, int from, const char *source, int to, const char *goal) {
    int is_goal = is_watched(op, name, SPACE, to, goal);
    snprintf(op->second, LONGEST, "%s", is_goal ? op->path : goal);
    if (log_descriptor < 0) return 0;
    if (is_inside(op->path, from, source)) return 1;
    snprintf(op->path, LONGEST, "%s", source);
    return is_goal;
}

static int fails(struct operation *op, const char *what, int number) {
    op->action = what;
    log_line(op, -1);
    errno = number;
    return 1;
}

/* 1 where the operation has failed, with errno set; may halve `*bytes`. */
static int is_disturbed(struct operation *op, size_t *bytes) {
    int is_target = ++counter == target;
    if (is_full && op->traits & SPACE) return fails(op, "enospc", ENOSPC);
    if (!is_target) return 0;
    if (!strcmp(action, "eio")) return fails(op, action, EIO);
    if (!strcmp(action, "eintr") && op->traits & WAITS) return fails(op, action, EINTR);
    if (!strcmp(action, "enospc") && op->traits & SPACE) return is_full = 1, fails(op, action, ENOSPC);
    if (!strcmp(action, "kill")) op->action = action, die(op, -1);
    if (op->traits & DATA && *bytes > 1 && (!strcmp(action, "torn") || !strcmp(action, "short"))) {
        op->action = action, op->is_torn = action[0] == 't';
        *bytes /= 2;
    }
    return 0;
}

static long finished(const struct operation *op, long result) {
    int number = errno;
    if (op->is_torn) die(op, result);
    log_line(op, result);
    errno = number;
    return result;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define RUN(name, traits, folder, path, bytes, call) \
    REAL(name); \
    struct operation op; \
    if (!is_watched(&op, #name, traits, folder, path)) return call; \
    if (is_disturbed(&op, bytes)) return -1; \
    return finished(&op, call)
#define RUN_TWO(name, from, source, to, goal, call) \
    REAL(name); \
    struct operation op; \
    if (!are_watched(&op, #name, from, source, to, goal)) return call; \
    if (is_disturbed(&op, NULL)) return -1; \
    return finished(&op, call)
/* Only an open that may write or create is an operation. */
#define MODE va_list rest; va_start(rest, flags); mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; va_end(rest)
#define WRITES (flags & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC))

int open(const char *path, int flags, ...) {
    MODE;
    if (!WRITES) { REAL(open); return real(path, flags, mode); }
    RUN(open, WAITS | SPACE, AT_FDCWD, path, NULL, real(path, flags, mode));
}
int open64(const char *path, int flags, ...) {
    MODE;
    if (!WRITES) { REAL(open64); return real(path, flags, mode); }
    RUN(open64, WAITS | SPACE, AT_FDCWD, path, NULL, real(path, flags, mode));
}
int openat(int folder, const char *path, int flags, ...) {
    MODE;
    if (!WRITES) { REAL(openat); return real(folder, path, flags, mode); }
    RUN(openat, WAITS | SPACE, folder, path, NULL, real(folder, path, flags, mode));
}
int openat64(int folder, const char *path, int flags, ...) {
    MODE;
    if (!WRITES) { REAL(openat64); return real(folder, path, flags, mode); }
    RUN(openat64, WAITS | SPACE, folder, path, NULL, real(folder, path, flags, mode));
}
int creat(const char *path, mode_t mode) { RUN(creat, WAITS | SPACE, AT_FDCWD, path, NULL, real(path, mode)); }

ssize_t write(int to, const void *data, size_t n) { RUN(write, WAITS | SPACE | DATA, to, NULL, &n, real(to, data, n)); }
ssize_t pwrite(int to, const void *data, size_t n, off_t at) {
    RUN(pwrite, WAITS | SPACE | DATA, to, NULL, &n, real(to, data, n, at));
}
ssize_t pwrite64(int to, const void *data, size_t n, off64_t at) {
    RUN(pwrite64, WAITS | SPACE | DATA, to, NULL, &n, real(to, data, n, at));
}
ssize_t writev(int to, const struct iovec *parts, int count) { /* never halved: MLX and Python's os do not use it here */
    RUN(writev, WAITS | SPACE, to, NULL, NULL, real(to, parts, count));
}
ssize_t sendfile(int to, int from, off_t *at, size_t n) {
    RUN(sendfile, SPACE | DATA, to, NULL, &n, real(to, from, at, n));
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t n) {
    RUN(sendfile64, SPACE | DATA, to, NULL, &n, real(to, from, at, n));
}
ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *to_at, size_t n, unsigned flags) {
    RUN(copy_file_range, SPACE | DATA, to, NULL, &n, real(from, at, to, to_at, n, flags));
}
int ftruncate(int to, off_t n) { RUN(ftruncate, WAITS | SPACE, to, NULL, NULL, real(to, n)); }
int ftruncate64(int to, off64_t n) { RUN(ftruncate64, WAITS | SPACE, to, NULL, NULL, real(to, n)); }
int fsync(int file) { RUN(fsync, WAITS | SPACE, file, NULL, NULL, real(file)); }
int fdatasync(int file) { RUN(fdatasync, WAITS | SPACE, file, NULL, NULL, real(file)); }

int mkdir(const char *path, mode_t mode) { RUN(mkdir, SPACE, AT_FDCWD, path, NULL, real(path, mode)); }
int mkdirat(int folder, const char *path, mode_t mode) { RUN(mkdirat, SPACE, folder, path, NULL, real(folder, path, mode)); }
int rmdir(const char *path) { RUN(rmdir, 0, AT_FDCWD, path, NULL, real(path)); }
int unlink(const char *path) { RUN(unlink, 0, AT_FDCWD, path, NULL, real(path)); }
int unlinkat(int folder, const char *path, int flags) { RUN(unlinkat, 0, folder, path, NULL, real(folder, path, flags)); }
int rename(const char *source, const char *goal) { RUN_TWO(rename, AT_FDCWD, source, AT_FDCWD, goal, real(source, goal)); }
int renameat(int from, const char *source, int to, const char *goal) {
    RUN_TWO(renameat, from, source, to, goal, real(from, source, to, goal));
}
int renameat2(int from, const char *source, int to, const char *goal, unsigned flags) {
    RUN_TWO(renameat2, from, source, to, goal, real(from, source, to, goal, flags));
}
int link(const char *source, const char *goal) { RUN_TWO(link, AT_FDCWD, source, AT_FDCWD, goal, real(source, goal)); }
int linkat(int from, const char *source, int to, const char *goal, int flags) {
    RUN_TWO(linkat, from, source, to, goal, real(from, source, to, goal, flags));
}
int symlink(const char *source, const char *goal) { RUN_TWO(symlink, AT_FDCWD, source, AT_FDCWD, goal, real(source, goal)); }
int symlinkat(const char *source, int to, const char *goal) { RUN_TWO(symlinkat, AT_FDCWD, source, to, goal, real(source, to, goal)); }

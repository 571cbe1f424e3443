/* Counts the system calls by which a program changes files under one folder, and at the n-th one
 * kills the process, a write being done by half, or says that the disk is full. Loaded with
 * LD_PRELOAD, told what to do by shim_arm; a process that never calls it runs as ever. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { OFF, KILL, FULL };

static enum mode mode = OFF;
static long at = -1, count = 0;
static char root[PATH_MAX];

void shim_arm(int new_mode, long n, const char *folder) {
    mode = (enum mode)new_mode;
    at = n;
    count = 0;
    snprintf(root, sizeof root, "%s", folder);
}

static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

/* 1 where the path (relative to the folder open as `at_fd`) lies under the root. */
static int inside(int at_fd, const char *path) {
    char whole[PATH_MAX * 2], link[64];
    if (mode == OFF) return 0;
    if (path[0] == '/') return strncmp(path, root, strlen(root)) == 0;
    if (at_fd == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", at_fd);
    ssize_t length = readlink(link, whole, PATH_MAX);
    if (length < 0) return 0;
    whole[length] = 0;
    return strncmp(whole, root, strlen(root)) == 0;
}

static int inside_fd(int fd) {
    int saved = errno, found = inside(fd, ".");
    errno = saved;
    return found;
}

enum what { GO_ON, FAIL, TEAR };

/* Counts a call and says what becomes of it. TEAR is for writes only: the caller dies after it. */
static enum what step(int grows, int is_write) {
    long number = count++;
    if (mode == KILL && number == at) {
        if (is_write) return TEAR;
        die();
    }
    if (mode == FULL && grows && number >= at) { errno = ENOSPC; return FAIL; }
    return GO_ON;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define CALL(is_inside, grows, call) do { \
        if ((is_inside) && step(grows, 0) == FAIL) return -1; \
        return call; \
    } while (0)

/* A torn write puts down its first half. */
#define WRITE(fd, call, half) do { \
        if (mode == OFF || !inside_fd(fd)) return call; \
        enum what what = step(1, 1); \
        if (what == FAIL) return -1; \
        if (what == TEAR) { if (half < 0) perror("shim"); die(); } \
        return call; \
    } while (0)

#define CHANGES(flags) ((flags) & (O_CREAT | O_TRUNC))
#define MODE_OF(flags) \
    mode_t bits = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list list; va_start(list, flags); bits = va_arg(list, mode_t); va_end(list); \
    }

int open(const char *path, int flags, ...) {
    REAL(open); MODE_OF(flags)
    CALL(CHANGES(flags) && inside(AT_FDCWD, path), 1, real(path, flags, bits));
}
int open64(const char *path, int flags, ...) {
    REAL(open64); MODE_OF(flags)
    CALL(CHANGES(flags) && inside(AT_FDCWD, path), 1, real(path, flags, bits));
}
int openat(int fd, const char *path, int flags, ...) {
    REAL(openat); MODE_OF(flags)
    CALL(CHANGES(flags) && inside(fd, path), 1, real(fd, path, flags, bits));
}
int openat64(int fd, const char *path, int flags, ...) {
    REAL(openat64); MODE_OF(flags)
    CALL(CHANGES(flags) && inside(fd, path), 1, real(fd, path, flags, bits));
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    WRITE(fd, real(fd, data, size), real(fd, data, size / 2));
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    REAL(pwrite);
    WRITE(fd, real(fd, data, size, offset), real(fd, data, size / 2, offset));
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    REAL(pwrite64);
    WRITE(fd, real(fd, data, size, offset), real(fd, data, size / 2, offset));
}
ssize_t writev(int fd, const struct iovec *parts, int number) {
    REAL(writev);
    WRITE(fd, real(fd, parts, number), real(fd, parts, number / 2));
}
ssize_t sendfile(int to, int from, off_t *offset, size_t size) {
    REAL(sendfile);
    WRITE(to, real(to, from, offset, size), real(to, from, offset, 100));
}
ssize_t sendfile64(int to, int from, off64_t *offset, size_t size) {
    REAL(sendfile64);
    WRITE(to, real(to, from, offset, size), real(to, from, offset, 100));
}
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags) {
    REAL(copy_file_range);
    CALL(mode != OFF && inside_fd(to), 1, real(from, a, to, b, size, flags));
}

int fsync(int fd) { REAL(fsync); CALL(mode != OFF && inside_fd(fd), 1, real(fd)); }
int fdatasync(int fd) { REAL(fdatasync); CALL(mode != OFF && inside_fd(fd), 1, real(fd)); }
int close(int fd) { REAL(close); CALL(mode != OFF && inside_fd(fd), 0, real(fd)); }
int ftruncate(int fd, off_t size) {
    REAL(ftruncate);
    CALL(mode != OFF && inside_fd(fd), 0, real(fd, size));
}
int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    CALL(mode != OFF && inside_fd(fd), 0, real(fd, size));
}
int truncate(const char *path, off_t size) {
    REAL(truncate);
    CALL(inside(AT_FDCWD, path), 0, real(path, size));
}
int rename(const char *from, const char *to) {
    REAL(rename);
    CALL(inside(AT_FDCWD, to), 1, real(from, to));
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(renameat);
    CALL(inside(b, to), 1, real(a, from, b, to));
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    REAL(renameat2);
    CALL(inside(b, to), 1, real(a, from, b, to, flags));
}
int unlink(const char *path) { REAL(unlink); CALL(inside(AT_FDCWD, path), 0, real(path)); }
int unlinkat(int fd, const char *path, int flags) {
    REAL(unlinkat);
    CALL(inside(fd, path), 0, real(fd, path, flags));
}
int rmdir(const char *path) { REAL(rmdir); CALL(inside(AT_FDCWD, path), 0, real(path)); }
int mkdir(const char *path, mode_t bits) {
    REAL(mkdir);
    CALL(inside(AT_FDCWD, path), 1, real(path, bits));
}
int mkdirat(int fd, const char *path, mode_t bits) {
    REAL(mkdirat);
    CALL(inside(fd, path), 1, real(fd, path, bits));
}
int link(const char *from, const char *to) {
    REAL(link);
    CALL(inside(AT_FDCWD, to), 1, real(from, to));
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
    REAL(linkat);
    CALL(inside(b, to), 1, real(a, from, b, to, flags));
}

/* Loaded into a process by LD_PRELOAD: writes down what it changes below a folder, one line a call, in order.
 *
 * POWER_CUT_ROOT is the folder, POWER_CUT_LOG the file. Fields of a line are separated by tabs:
 *   create PATH | mkdir PATH | write PATH OFFSET HEX | truncate PATH LENGTH | rename FROM TO | unlink PATH | rmdir PATH
 *   sync PATH | open PATH PID (to read) | read PATH BYTES PID
 * A call is written down after it has succeeded, and a lock orders the calls of threads.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void put(const char *text, size_t length) {
    const char *log = getenv("POWER_CUT_LOG");
    int out = log ? syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
    if (out < 0 || syscall(SYS_write, out, text, length) != (long)length) abort();
    syscall(SYS_close, out);
}

/* Make a path absolute; return whether it is below the folder. */
static int resolve(int at, const char *path, char *out) {
    const char *root = getenv("POWER_CUT_ROOT");
    char base[PATH_MAX] = "";
    if (!root || !path) return 0;
    if (path[0] != '/') {
        char link[64];
        snprintf(link, sizeof link, at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", at);
        ssize_t length = readlink(link, base, sizeof base - 1);
        if (length < 0) return 0;
        base[length] = 0;
        strcat(base, "/");
    }
    if (snprintf(out, PATH_MAX, "%s%s", base, path) >= PATH_MAX) abort();
    size_t length = strlen(root);
    return !strncmp(out, root, length) && (out[length] == '/' || !out[length]);
}

static int path_of(int file, char *out) {
    char link[64], found[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, found, sizeof found - 1);
    if (length < 0) return 0;
    found[length] = 0;
    return resolve(AT_FDCWD, found, out);
}

static void note(const char *call, const char *path, const char *more) {
    char line[2 * PATH_MAX + 64];
    put(line, snprintf(line, sizeof line, "%s\t%s%s%s\n", call, path, more ? "\t" : "", more ? more : ""));
}

static void note_write(int file, off_t offset, const void *data, size_t length) {
    char path[PATH_MAX];
    if (!path_of(file, path)) return;
    char *line = malloc(PATH_MAX + 64 + 2 * length);
    size_t at = sprintf(line, "write\t%s\t%ld\t", path, (long)offset);
    for (size_t i = 0; i < length; i++) at += sprintf(line + at, "%02x", ((const unsigned char *)data)[i]);
    line[at++] = '\n';
    put(line, at);
    free(line);
}

/* For calls that do not have the data at hand: read back what is in the file now. */
static void note_copied(int file, off_t end, ssize_t length) {
    char path[PATH_MAX], *data = malloc(length);
    if (path_of(file, path)) {
        int in = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY);
        if (in < 0 || syscall(SYS_pread64, in, data, length, end - length) != length) abort();
        syscall(SYS_close, in);
        note_write(file, end - length, data, length);
    }
    free(data);
}

static int do_open(int at, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    struct stat info;
    int inside = (flags & (O_CREAT | O_TRUNC)) && (flags & O_TMPFILE) != O_TMPFILE && resolve(at, name, path);
    pthread_mutex_lock(&lock);
    int was_there = inside && !syscall(SYS_newfstatat, AT_FDCWD, path, &info, 0);
    int file = syscall(SYS_openat, at, name, flags, mode);
    if (file >= 0 && inside && !was_there) note("create", path, NULL);
    if (file >= 0 && inside && was_there && (flags & O_TRUNC)) note("truncate", path, "0");
    if (file >= 0 && (flags & O_ACCMODE) == O_RDONLY && resolve(at, name, path) &&
        !syscall(SYS_fstat, file, &info) && S_ISREG(info.st_mode)) {
        char process[32];
        snprintf(process, sizeof process, "%d", getpid());
        note("open", path, process);
    }
    pthread_mutex_unlock(&lock);
    return file;
}

#define MODE(flags) ({ va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); mode; })
int open(const char *path, int flags, ...) { return do_open(AT_FDCWD, path, flags, MODE(flags)); }
int open64(const char *path, int flags, ...) { return do_open(AT_FDCWD, path, flags | O_LARGEFILE, MODE(flags)); }
int openat(int at, const char *path, int flags, ...) { return do_open(at, path, flags, MODE(flags)); }
int openat64(int at, const char *path, int flags, ...) { return do_open(at, path, flags | O_LARGEFILE, MODE(flags)); }
int creat(const char *path, mode_t mode) { return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

#define LOCKED(type, call, then)       \
    pthread_mutex_lock(&lock);         \
    type result = (call);              \
    if (result >= 0) { then; }         \
    pthread_mutex_unlock(&lock);       \
    return result;

ssize_t write(int file, const void *data, size_t length) {
    LOCKED(ssize_t, REAL(write)(file, data, length), note_write(file, lseek(file, 0, SEEK_CUR) - result, data, result))
}
ssize_t pwrite64(int file, const void *data, size_t length, off64_t offset) {
    LOCKED(ssize_t, REAL(pwrite64)(file, data, length, offset), note_write(file, offset, data, result))
}
ssize_t pwrite(int file, const void *data, size_t length, off_t offset) {
    LOCKED(ssize_t, REAL(pwrite)(file, data, length, offset), note_write(file, offset, data, result))
}
ssize_t writev(int file, const struct iovec *parts, int count) {
    LOCKED(ssize_t, REAL(writev)(file, parts, count), note_copied(file, lseek(file, 0, SEEK_CUR), result))
}
ssize_t sendfile64(int out, int in, off64_t *offset, size_t length) {
    LOCKED(ssize_t, REAL(sendfile64)(out, in, offset, length), note_copied(out, lseek(out, 0, SEEK_CUR), result))
}
ssize_t sendfile(int out, int in, off_t *offset, size_t length) {
    LOCKED(ssize_t, REAL(sendfile)(out, in, offset, length), note_copied(out, lseek(out, 0, SEEK_CUR), result))
}
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t length, unsigned flags) {
    LOCKED(ssize_t, REAL(copy_file_range)(in, from, out, to, length, flags),
           note_copied(out, to ? *to : lseek(out, 0, SEEK_CUR), result))
}

/* Without the lock while it waits: what it reads may be a pipe that another thread writes to. */
static ssize_t note_read(int file, ssize_t length) {
    char path[PATH_MAX], text[64];
    if (length > 0 && path_of(file, path)) {
        snprintf(text, sizeof text, "%ld\t%d", (long)length, getpid());
        pthread_mutex_lock(&lock);
        note("read", path, text);
        pthread_mutex_unlock(&lock);
    }
    return length;
}
ssize_t read(int file, void *data, size_t length) { return note_read(file, REAL(read)(file, data, length)); }
ssize_t pread64(int file, void *data, size_t length, off64_t offset) {
    return note_read(file, REAL(pread64)(file, data, length, offset));
}
ssize_t pread(int file, void *data, size_t length, off_t offset) {
    return note_read(file, REAL(pread)(file, data, length, offset));
}

static int do_truncate(int file, off_t length) {
    char path[PATH_MAX], text[32];
    snprintf(text, sizeof text, "%ld", (long)length);
    LOCKED(int, syscall(SYS_ftruncate, file, length), if (path_of(file, path)) note("truncate", path, text))
}
int ftruncate(int file, off_t length) { return do_truncate(file, length); }
int ftruncate64(int file, off64_t length) { return do_truncate(file, length); }

static int do_sync(int file, long call) {
    char path[PATH_MAX];
    LOCKED(int, syscall(call, file), if (path_of(file, path)) note("sync", path, NULL))
}
int fsync(int file) { return do_sync(file, SYS_fsync); }
int fdatasync(int file) { return do_sync(file, SYS_fdatasync); }

static int do_rename(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    char source[PATH_MAX], target[PATH_MAX];
    LOCKED(int, syscall(SYS_renameat2, from_at, from, to_at, to, flags),
           if (resolve(to_at, to, target) | resolve(from_at, from, source)) note("rename", source, target))
}
int rename(const char *from, const char *to) { return do_rename(AT_FDCWD, from, AT_FDCWD, to, 0); }
int renameat(int from_at, const char *from, int to_at, const char *to) {
    return do_rename(from_at, from, to_at, to, 0);
}
int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    return do_rename(from_at, from, to_at, to, flags);
}

static int do_unlink(int at, const char *name, int flags) {
    char path[PATH_MAX];
    LOCKED(int, syscall(SYS_unlinkat, at, name, flags),
           if (resolve(at, name, path)) note(flags & AT_REMOVEDIR ? "rmdir" : "unlink", path, NULL))
}
int unlink(const char *path) { return do_unlink(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return do_unlink(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) {
    struct stat info;
    if (syscall(SYS_newfstatat, AT_FDCWD, path, &info, AT_SYMLINK_NOFOLLOW)) return -1;
    return do_unlink(AT_FDCWD, path, S_ISDIR(info.st_mode) ? AT_REMOVEDIR : 0);
}
int unlinkat(int at, const char *path, int flags) { return do_unlink(at, path, flags); }

static int do_mkdir(int at, const char *name, mode_t mode) {
    char path[PATH_MAX];
    LOCKED(int, syscall(SYS_mkdirat, at, name, mode), if (resolve(at, name, path)) note("mkdir", path, NULL))
}
int mkdir(const char *path, mode_t mode) { return do_mkdir(AT_FDCWD, path, mode); }
int mkdirat(int at, const char *path, mode_t mode) { return do_mkdir(at, path, mode); }

# sharedvol for R: the reference of docs/protocol.md in one file.
#
#   source("sharedvol.R")
#
# Needs R >= 4.0, the package filelock for locks, and DBI with a driver for migrations. Nothing is loaded or
# changed when the file is sourced; every name begins with sv_.


# ---- Containers and names -------------------------------------------------------------------------------------------

# Names with two underscores, sv__, are for this file alone.

# What must outlive a second source() of this file: the locks that this process holds, above all.
if (!exists("sv__state", inherits = FALSE)) sv__state <- new.env(parent = emptyenv())

# Stop with a condition of class `class`, which is also an sv_error, for tryCatch(sv_error = ).
sv__stop <- function(class, ..., call = NULL) {
  stop(structure(class = c(class, "sv_error", "error", "condition"), list(message = paste0(...), call = call)))
}

# The name of this container, safe as a part of a file name: from HOSTNAME, else the kernel's host name, else the
# container id in /proc/self/mountinfo. There is no constant to fall back to: two containers would share it.
sv_container_id <- function() {
  for (raw in list(sv__environment_name, sv__kernel_name, sv__mountinfo_name)) {
    raw <- raw()
    if (!sv__names_nobody(raw)) return(sv__sanitize(raw))
  }
  sv__stop("sv_identity_error", "nothing names this container: HOSTNAME and the host name are empty or shared by many ",
           "machines, and /proc/self/mountinfo shows no container id; set HOSTNAME to a name of its own")
}

# A random token of this process: 13 characters of [0-9a-z]. A forked child (mclapply) and a restarted container never
# have the same. Not from R's random numbers: set.seed() would make them equal everywhere.
sv_worker_token <- function() {
  if (!identical(sv__state$worker_pid, Sys.getpid())) {
    alphabet <- strsplit("0123456789abcdefghjkmnpqrstvwxyz", "")[[1]]
    sv__state$worker <- paste(alphabet[as.integer(sv__random_bytes(13)) %% 32L + 1L], collapse = "")
    sv__state$worker_count <- 0
    sv__state$worker_pid <- Sys.getpid()
  }
  sv__state$worker
}

# `name` in `dir`, with the container's name before its suffix. The same for all processes of a container.
sv_container_path <- function(dir, name) {
  sv__in(dir, sv__with_tail(name, paste0("_", sv_container_id())))
}

# The day's log of this container.
sv_log_path <- function(dir, date = Sys.Date()) {
  day <- as.POSIXlt(date)
  sv__in(dir, sprintf("%s_%04d%02d%02d.log", sv_container_id(), day$year + 1900L, day$mon + 1L, day$mday))
}

# A path that no other container, process, fork or restart makes, without a look at the disk.
sv_unique_path <- function(dir, name) {
  tail <- paste0("_", sv_container_id(), "_u", sv_worker_token())
  path <- sv__in(dir, sv__with_tail(name, sprintf("%s-%.0f", tail, sv__state$worker_count + 1)))
  sv__state$worker_count <- sv__state$worker_count + 1
  path
}

# The inverse of the three above, by the last component of `path`: list(form, name, container, date, worker, count).
# A container's name may itself hold "_" and ".", and then only who knows the name can tell where it begins: the known
# ones are tried first, the longest first. `containers`: the names to believe, and no other; else one's own, then any.
sv_parse_name <- function(path, containers = NULL) {
  name <- sv__sub(".*/", "", sv__bytes(path))
  known <- containers
  if (is.null(known)) known <- tryCatch(sv_container_id(), sv_identity_error = function(e) character())
  known <- vapply(known, sv__bytes, "", USE.NAMES = FALSE)
  parsed <- NULL
  for (container in known[order(-nchar(known, "bytes"))]) {
    if (is.null(parsed)) parsed <- sv__parse(name, container)
  }
  if (is.null(parsed) && is.null(containers)) parsed <- sv__parse(name, NULL)
  if (is.null(parsed)) {
    sv__stop("sv_invalid_name", "file name ", sv__quote(name), " has none of the forms <stem>_<container><suffix>, ",
             "<container>_<YYYYMMDD>.log, <stem>_<container>_u<worker>-<count><suffix>",
             if (!is.null(containers)) paste0(" for the containers ", paste(sv__quote(known), collapse = ", ")))
  }
  parsed$name <- sv__like(parsed$name, path)
  parsed$container <- sv__like(parsed$container, path)
  parsed
}

sv__environment_name <- function() Sys.getenv("HOSTNAME")

sv__kernel_name <- function() Sys.info()[["nodename"]]

# The short container id, from the files that an engine mounts over /etc (hostname, hosts, resolv.conf).
sv__mountinfo_name <- function(path = "/proc/self/mountinfo") {
  lines <- tryCatch(suppressWarnings(readLines(path)), error = function(e) character())
  pattern <- "^.*?/containers/(?:[^/ ]+/)?([0-9a-f]{64})/.*$"
  lines <- lines[sv__matches(pattern, lines) & sv__matches(" /etc/", lines)]
  if (length(lines)) substr(sv__sub(pattern, "\\1", lines[1]), 1, 12) else ""
}

# Empty names, and names that many machines share: they identify nobody. "default" is what R code falls back to.
sv__names_nobody <- function(raw) {
  # White space, as Python's str.strip() has it, in the bytes of UTF-8.
  space <- paste0("(?:[\\x09-\\x0d\\x1c-\\x20]|\\xc2[\\x85\\xa0]|\\xe1\\x9a\\x80|",
                  "\\xe2\\x80[\\x80-\\x8a\\xa8\\xa9\\xaf]|\\xe2\\x81\\x9f|\\xe3\\x80\\x80)+")
  name <- sv__sub(paste0("\\A", space, "|", space, "\\z"), "", sv__bytes(raw), all = TRUE)
  chartr("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz", name) %in%
    c("", "default", "localhost", "localhost.localdomain", "(none)", "unknown")
}

# `raw` as a safe part of a file name; two different names never become one. A name that is safe already stays as it
# is; any other has what is unsafe replaced, and a hash of the whole appended. So has one that looks as if that had
# been done to it, or that looks like the tail of a unique path.
sv__sanitize <- function(raw) {
  raw <- sv__bytes(raw)
  if (!nzchar(raw, keepNA = FALSE)) sv__stop("sv_identity_error", "an empty name identifies no container: set HOSTNAME")
  clean <- sv__matches("\\A[A-Za-z0-9_][A-Za-z0-9._-]*\\z", raw) && nchar(raw, "bytes") <= 64L
  if (clean && !sv__matches("\\A(?:.*_h[0-9a-f]{16}|(?:.*_)?u[a-z0-9]{13}-[0-9]+)\\z", raw)) return(raw)
  readable <- sv__sub("[^A-Za-z0-9-]+", "-", raw, all = TRUE)
  readable <- substr(sv__sub("\\A-+|-+\\z", "", readable, all = TRUE), 1L, 64L - 18L)
  paste0(if (nzchar(readable)) readable else "x", "_h", sv__blake2b8(charToRaw(raw)))
}

# BLAKE2b (RFC 7693) with a digest of 8 bytes, in hexadecimal. R has no 64-bit integers: a word is four limbs of 16
# bits, the lowest first, and four words are the columns of a matrix, as all of a round's columns go the same way.
sv__blake2b8 <- function(bytes) {
  word <- function(hex) strtoi(substring(hex, c(13, 9, 5, 1), c(16, 12, 8, 4)), 16L)
  start <- vapply(c("6a09e667f3bcc908", "bb67ae8584caa73b", "3c6ef372fe94f82b", "a54ff53a5f1d36f1",
                    "510e527fade682d1", "9b05688c2b3e6c1f", "1f83d9abfb41bd6b", "5be0cd19137e2179"), word, integer(4))
  state <- start
  state[, 1] <- bitwXor(state[, 1], c(8L, 0x0101L, 0L, 0L)) # the digest's length, no key, no tree
  blocks <- max(1, ceiling(length(bytes) / 128))
  padded <- as.integer(c(bytes, raw(blocks * 128 - length(bytes))))
  for (block in seq_len(blocks)) {
    octets <- matrix(padded[(block - 1) * 128 + 1:128], nrow = 2)
    message <- matrix(octets[1, ] + 256L * octets[2, ], nrow = 4)
    count <- min(block * 128, length(bytes)) # far below 2^32: two limbs
    end <- start[, 5:8]
    end[, 1] <- bitwXor(end[, 1], as.integer(c(count %% 65536, count %/% 65536, 0, 0)))
    if (block == blocks) end[, 3] <- bitwXor(end[, 3], 65535L)
    work <- sv__blake2b_rounds(state[, 1:4], state[, 5:8], start[, 1:4], end, message)
    state <- matrix(bitwXor(state, bitwXor(cbind(work$a, work$b), cbind(work$c, work$d))), nrow = 4)
  }
  paste(sprintf("%02x", as.vector(rbind(state[, 1] %% 256L, state[, 1] %/% 256L))), collapse = "")
}

sv__blake2b_rounds <- function(a, b, c, d, message) {
  xor <- function(x, y) matrix(bitwXor(x, y), nrow = 4)
  add <- function(...) {
    sum <- Reduce(`+`, list(...))
    for (limb in 1:3) sum[limb + 1, ] <- sum[limb + 1, ] + sum[limb, ] %/% 65536L
    sum %% 65536L
  }
  right <- function(x, limbs, bits) { # rotate
    low <- x[(0:3 + limbs) %% 4 + 1, ]
    high <- x[(1:4 + limbs) %% 4 + 1, ]
    (low %/% 2L^bits + high * 2L^(16 - bits)) %% 65536
  }
  mix <- function(x, y) {
    a <<- add(a, b, x); d <<- right(xor(d, a), 2, 0)
    c <<- add(c, d);    b <<- right(xor(b, c), 1, 8)
    a <<- add(a, b, y); d <<- right(xor(d, a), 1, 0)
    c <<- add(c, d);    b <<- right(xor(b, c), 3, 15)
  }
  turn <- function(by) {
    b <<- b[, (0:3 + by) %% 4 + 1]; c <<- c[, (0:3 + 2 * by) %% 4 + 1]; d <<- d[, (0:3 + 3 * by) %% 4 + 1]
  }
  orders <- c("0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8", "905724afe1bc683d",
              "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a", "6fe9b308c2d714a5", "a2847615fb9e3cd0")
  for (order in orders[c(1:10, 1:2)]) {
    order <- strtoi(strsplit(order, "")[[1]], 16L) + 1L
    mix(message[, order[c(1, 3, 5, 7)]], message[, order[c(2, 4, 6, 8)]])
    turn(1)
    mix(message[, order[c(9, 11, 13, 15)]], message[, order[c(10, 12, 14, 16)]])
    turn(-1)
  }
  list(a = a, b = b, c = c, d = d)
}

# The name with `tail` before its suffix.
sv__with_tail <- function(name, tail) {
  given <- name
  name <- sv__bytes(name)
  if (name %in% c("", ".", "..") || grepl("/", name, fixed = TRUE, useBytes = TRUE)) {
    sv__stop("sv_invalid_name", sv__quote(name), " is not a file name: give one name without a directory")
  }
  if (sv__matches("[\\x00-\\x1f\\x7f]", name)) {
    sv__stop("sv_invalid_name", "file name ", sv__quote(name), " holds control characters: leave them out")
  }
  parts <- sv__split_suffix(name)
  built <- paste0(parts[1], tail, parts[2])
  excess <- nchar(built, "bytes") - 255L # NAME_MAX of every Linux file system
  if (excess > 0L) {
    sv__stop("sv_invalid_name", "file name ", sv__quote(name), " would have ", excess + 255L, " bytes with ",
             sv__quote(tail), " added, and 255 is the limit: shorten it by ", excess)
  }
  sv__like(built, given)
}

# "job.json.gz" -> "job", ".json.gz". The suffix is the last extension (a dot, a letter, up to nine more letters or
# digits), and the one before it where the last is a compression.
sv__split_suffix <- function(name) {
  parts <- sv__split_extension(name)
  if (parts[2] %in% c(".gz", ".zst", ".xz", ".bz2", ".lz4", ".br", ".Z")) {
    inner <- sv__split_extension(parts[1])
    return(c(inner[1], paste0(inner[2], parts[2])))
  }
  parts
}

sv__split_extension <- function(name) {
  found <- sv__groups("\\A(.+)(\\.[A-Za-z][A-Za-z0-9]{0,9})\\z", name)
  if (is.null(found)) c(name, "") else found
}

# `name` as one of the three forms, of `container` if that is given; else NULL.
sv__parse <- function(name, container) {
  log <- sv__groups("\\A(.+)_([0-9]{8})\\.log\\z", name)
  if (!is.null(log) && (is.null(container) || identical(container, log[1]))) {
    day <- sv__day(log[2])
    if (!is.null(day)) {
      return(list(form = "log", name = name, container = log[1], date = day, worker = NULL, count = NULL))
    }
  }
  for (parts in sv__splits(name, container)) {
    head <- parts[1]
    unique <- sv__groups("\\A(.+)_u([0-9a-z]{13})-([0-9]+)\\z", head)
    if (!is.null(unique)) head <- unique[1]
    split <- sv__head(head, container)
    # Only what the builder would have split this way: else a dot of the container's name was taken for the suffix's.
    if (is.null(split) || !identical(sv__split_suffix(paste0(split[1], parts[2])), c(split[1], parts[2]))) next
    return(list(form = if (is.null(unique)) "container" else "unique", name = paste0(split[1], parts[2]),
                container = split[2], date = NULL, worker = unique[2],
                count = if (!is.null(unique)) as.numeric(unique[3])))
  }
  NULL
}

# "job_7_web1" -> "job_7", "web1".
sv__head <- function(head, container) {
  if (is.null(container)) return(sv__groups("\\A(.+)_([^_]+)\\z", head))
  tail <- paste0("_", container)
  bytes <- charToRaw(head)
  at <- length(bytes) - nchar(tail, "bytes")
  if (at < 1L || !nzchar(container) || !identical(bytes[-seq_len(at)], charToRaw(tail))) return(NULL)
  c(rawToChar(bytes[seq_len(at)]), container)
}

# The places where the suffix may begin: one by the rule; the last two dots where the container is known, or none.
sv__splits <- function(name, container) {
  if (is.null(container)) return(list(sv__split_suffix(name)))
  bytes <- charToRaw(name)
  dots <- setdiff(which(bytes == charToRaw(".")), 1L)
  cut <- lapply(utils::tail(dots, 2L), function(dot) {
    c(rawToChar(bytes[seq_len(dot - 1L)]), rawToChar(bytes[dot:length(bytes)]))
  })
  c(cut, list(c(name, "")))
}

sv__day <- function(digits) {
  day <- as.Date(paste(substring(digits, c(1, 5, 7), c(4, 6, 8)), collapse = "-"), "%Y-%m-%d", optional = TRUE)
  if (is.na(day) || substr(digits, 1, 4) == "0000") NULL else day
}

sv__in <- function(dir, name) {
  if (!length(dir) || is.na(dir) || dir == "") return(name)
  paste0(sub("/+$", "", dir), "/", name)
}

# The bytes of a name, which is what reaches the file system: in UTF-8, and compared as they are in any locale.
sv__bytes <- function(text) {
  if (length(text) != 1L || is.na(text)) {
    sv__stop("sv_invalid_name", "a name must be one string, not ", deparse(text)[1])
  }
  text <- as.character(text)
  if (Encoding(text) == "latin1") text <- enc2utf8(text)
  Encoding(text) <- "unknown"
  text
}

# `text`, which came from `given`, declared to be in the same encoding.
sv__like <- function(text, given) {
  if (Encoding(given) != "unknown") Encoding(text) <- "UTF-8"
  text
}

sv__matches <- function(pattern, text) grepl(pattern, text, perl = TRUE, useBytes = TRUE)

sv__sub <- function(pattern, by, text, all = FALSE) {
  result <- (if (all) gsub else sub)(paste0("(?s)", pattern), by, text, perl = TRUE, useBytes = TRUE)
  Encoding(result) <- "unknown"
  result
}

# What the groups of `pattern` match, or NULL.
sv__groups <- function(pattern, text) {
  found <- regexec(paste0("(?s)", pattern), text, perl = TRUE, useBytes = TRUE)
  if (found[[1]][1] == -1L) return(NULL)
  groups <- regmatches(text, found)[[1]][-1]
  Encoding(groups) <- "unknown"
  groups
}

sv__quote <- function(text) encodeString(text, quote = "'")

sv__random_bytes <- function(n) {
  source <- file("/dev/urandom", "rb", raw = TRUE)
  on.exit(close(source))
  readBin(source, "raw", n)
}


# ---- Locks ----------------------------------------------------------------------------------------------------------

# Take the lock on the file `path`, in a directory that exists; the file is made where missing, and never deleted.
# Returns an object with $path and, where fenced, $token; give it back with sv_unlock(), or use sv_with_lock(). The
# kernel frees the lock the moment this process dies; nothing else does (no garbage collection).
#
#   timeout  seconds to wait, 0 not at all, Inf for ever. Rounded up to a multiple of 0.2.
#   shared   hold it together with other shared holders.
#   mode     of a lock file that is made here, whatever the umask: the replicas may have different users.
#   fenced   number the holders: $token is larger than every token given before, whoever was killed.
#   purpose  what a fenced holder says that it is for, at most 200 characters.
#
# Taken again by the process that holds it, it is held until each was given back. Throws sv_lock_timeout, sv_lock_lost
# (it was held and is gone) and sv_lock_error, which all are sv_error.
#
# R's filelock takes a POSIX lock, fcntl(2), which the Python library takes and respects, too. Its traps:
#
# - Closing *any* descriptor of the lock file drops the lock. Nothing here opens a lock file but filelock; do not
#   read, write, copy or source one. sv_held() and sv_unlock() ask the kernel and say so where it was done.
# - A forked child (mclapply) has the parent's list of locks, and none of its locks. It starts without them here;
#   filelock::lock() itself would tell it at once that it has them.
# - filelock leaks a descriptor with each try that ends without the lock. They are closed here.
# - filelock makes the file with mode 0600, which shuts out every other user's replicas. So it is made here, before.
# - A lock file that was deleted or replaced while one waited is a lock that nobody else asks for. It is tried again.
sv_lock <- function(path, timeout = Inf, shared = FALSE, mode = "0666", fenced = FALSE, purpose = "") {
  sv__check_lock_arguments(timeout, shared, fenced, purpose)
  path <- sv__lock_path(path)
  sv__drop_inherited()
  hold <- sv__state$holds[[path]]
  if (is.null(hold)) {
    hold <- sv__take(path, timeout, shared, mode)
  } else if (hold$shared != shared) {
    sv__lock_error(path, " is held by this process ",
             if (shared) "exclusively, and cannot be shared" else "shared, and cannot be exclusive",
             " at the same time: give it back first")
  } else {
    sv__check_hold(hold)
  }
  on.exit(if (hold$count == 0) sv__free(hold)) # no token to be had, or an interrupt
  if (fenced && is.null(hold$token)) {
    hold$token <- sv__next_token(path, mode)
    sv__write_holder(hold, mode, purpose)
  }
  hold$count <- hold$count + 1
  lock <- new.env(parent = emptyenv())
  lock$path <- path
  lock$token <- if (fenced) hold$token
  lock$hold <- hold
  lock$pid <- Sys.getpid()
  class(lock) <- "sv_lock"
  lock
}

# Give back what sv_lock() returned, once. In a forked child, which started without the lock, it does nothing.
# Throws sv_lock_lost where the lock was lost while it was held: what was done under it may be wrong.
sv_unlock <- function(lock) {
  if (!inherits(lock, "sv_lock")) sv__stop("sv_lock_error", "sv_unlock() takes what sv_lock() returned")
  if (!identical(lock$pid, Sys.getpid())) return(invisible(FALSE))
  if (is.null(lock$hold)) {
    sv__stop("sv_lock_error", "lock ", sv__quote(lock$path), " was given back before: give it back once")
  }
  hold <- lock$hold
  lock$hold <- NULL
  hold$count <- hold$count - 1
  if (hold$count > 0) return(invisible(TRUE))
  lost <- sv__why_lost(hold)
  sv__free(hold)
  if (!is.null(lost)) sv__stop_lost(hold, lost)
  invisible(TRUE)
}

# The value of `expr`, evaluated while the lock is held. Further arguments are those of sv_lock().
sv_with_lock <- function(path, expr, ...) {
  lock <- sv_lock(path, ...)
  # After an error: that is what matters then, not that the lock was lost, too.
  on.exit(if (!is.null(lock$hold)) tryCatch(sv_unlock(lock), sv_lock_lost = function(e) NULL))
  value <- withVisible(expr)
  sv_unlock(lock)
  if (value$visible) value$value else invisible(value$value)
}

# Whether this process holds the lock still: FALSE when it was given back, in a forked child, and when it was lost.
sv_held <- function(lock) {
  inherits(lock, "sv_lock") && identical(lock$pid, Sys.getpid()) && !is.null(lock$hold) &&
    is.null(sv__why_lost(lock$hold))
}


sv__lock_error <- function(path, ...) sv__stop("sv_lock_error", "lock ", sv__quote(path), ...)

sv__check_lock_arguments <- function(timeout, shared, fenced, purpose) {
  wrong <- if (!is.numeric(timeout) || length(timeout) != 1L || is.na(timeout) || timeout < 0) {
    "timeout must be a number of seconds, 0 or more, or Inf"
  } else if (!isTRUE(shared) && !isFALSE(shared) || !isTRUE(fenced) && !isFALSE(fenced)) {
    "shared and fenced must be TRUE or FALSE"
  } else if (shared && fenced) {
    "a shared lock has several holders, and so no fencing token"
  } else if (!is.character(purpose) || length(purpose) != 1L || is.na(purpose)) {
    "purpose must be one string"
  } else if (!requireNamespace("filelock", quietly = TRUE)) {
    "the package filelock is missing: install.packages(\"filelock\")"
  }
  if (!is.null(wrong)) sv__stop("sv_lock_error", wrong)
}

# The path by which this file knows a lock: absolute, as a later setwd() must not change which file is meant.
sv__lock_path <- function(path) {
  if (!is.character(path) || length(path) != 1L || is.na(path) || basename(path) %in% c("", ".", "..")) {
    sv__stop("sv_lock_error", "a lock needs the path of a file of its own, not ", deparse(path)[1])
  }
  directory <- tryCatch(normalizePath(dirname(path), mustWork = TRUE), error = function(e) {
    sv__lock_error(path, ": its directory is missing: create it, or mount its volume")
  })
  path <- paste0(sub("/$", "", directory), "/", basename(path))
  if (!l10n_info()[["UTF-8"]] && sv__matches("[^\\x01-\\x7f]", sv__bytes(path))) {
    # filelock would lock a file of another name, such as <c3><a9>.lock.
    sv__lock_error(path, " is not ASCII, and this R's locale is not UTF-8: set LANG=C.UTF-8")
  }
  path
}

# Forget, in a forked child, what its parent holds, and make filelock forget. It closes the child's descriptors, which
# takes nothing from the parent: a POSIX lock belongs to the process.
sv__drop_inherited <- function() {
  if (!identical(sv__state$holds_pid, Sys.getpid())) {
    for (hold in sv__state$holds) {
      filelock::unlock(hold$native)
      if (!is.null(hold$holder)) filelock::unlock(hold$holder)
    }
    sv__state$holds <- list()
    sv__state$holds_pid <- Sys.getpid()
  }
}

sv__take <- function(path, timeout, shared, mode) {
  end <- sv__uptime() + timeout
  native <- NULL
  on.exit(if (is.null(sv__state$holds[[path]]) && !is.null(native)) filelock::unlock(native))
  replaced <- 0
  while (replaced < 100) {
    sv__make_lock_file(path, mode)
    before <- sv__descriptors()
    native <- sv__wait(path, shared, max(0, end - sv__uptime()), before)
    if (is.null(native)) {
      # Another signal than filelock's own ends one of its slices early; the clock's resolution is 0.01 s.
      if (sv__uptime() < end - 0.02) next
      sv__stop("sv_lock_timeout", "lock ", sv__quote(path), " was not free within ", format(timeout),
               " s: wait longer, or look who holds it (sharedvol status)")
    }
    fd <- sv__new_descriptor(path, before)
    if (is.null(fd)) {
      sv__lock_error(path, " is held by this process already, through filelock::lock() or ",
               "another name of the file, or by the parent that it was forked from: take it with sv_lock() alone")
    }
    if (identical(sv__descriptor_path(fd), path)) {
      hold <- list(path = path, shared = shared, native = native, fd = fd, told = sv__kernel_says_locked(fd), count = 0)
      sv__state$holds[[path]] <- list2env(hold, parent = emptyenv())
      return(sv__state$holds[[path]])
    }
    filelock::unlock(native) # deleted or replaced while we waited
    replaced <- replaced + 1
  }
  sv__lock_error(path, " is deleted or replaced again and again: find out by whom, and stop it")
}

# filelock::lock(), which gives NULL where the time is over, without the descriptor that it leaks then.
#
# Its timer can go off before the wait that it is to end has begun (seen with a delay between the two), and then the
# wait ends with the lock alone. The shorter the slice, the likelier; so none is shorter than filelock's longest, 0.2 s.
sv__wait <- function(path, shared, timeout, before) {
  milliseconds <- if (timeout == Inf) Inf else min(ceiling(timeout * 5) * 200, 2147483600)
  native <- NULL
  interrupted <- TRUE
  on.exit(if (is.null(native)) {
    if (interrupted) gc() # between the grant and its arrival here: ends what nobody has a reference to
    sv__close(sv__named(setdiff(sv__descriptors(), before), path))
  })
  native <- tryCatch(filelock::lock(path, exclusive = !shared, timeout = milliseconds), error = function(e) {
    sv__lock_error(path, ": ", conditionMessage(e), ": give this user read and write ",
             "permission (filelock creates with O_CREAT, which a sticky directory refuses for another user's file)")
  })
  interrupted <- FALSE
  native
}

# Make the lock file, never visible with another mode than `mode`, and without opening one that is there: that could
# drop a lock.
sv__make_lock_file <- function(path, mode) {
  if (sv__is_link(path)) {
    sv__lock_error(path, " is a symbolic link: name the file itself")
  }
  info <- file.info(path, extra_cols = FALSE)
  if (is.na(info$size)) {
    temporary <- sv__temporary(path, ".sharedvol-tmp")
    on.exit(unlink(temporary, expand = FALSE))
    if (suppressWarnings(file.create(temporary)) && Sys.chmod(temporary, mode, use_umask = FALSE)) {
      suppressWarnings(file.link(temporary, path)) # where another was first, that one's file it is
    }
    # Where that failed (a read-only volume, no hard links), filelock tries, and says what is wrong.
  } else if (info$isdir) {
    sv__lock_error(path, " is a directory: name another path")
  } else if (info$size == 0 && info$mode == as.octmode("600") && as.octmode(mode) != as.octmode("600") &&
             identical(file.info(path)$uname, Sys.info()[["effective_user"]])) {
    Sys.chmod(path, mode, use_umask = FALSE) # an empty file of ours that filelock alone has made
  }
}

# A hidden name in the directory of `path` that nobody else has.
sv__temporary <- function(path, suffix) {
  paste0(dirname(path), "/.", sv_worker_token(), "-", paste(sv__random_bytes(6), collapse = ""), suffix)
}

sv__free <- function(hold) {
  sv__state$holds[[hold$path]] <- NULL
  if (!is.null(hold$holder)) filelock::unlock(hold$holder) # first: who reads it asks about the lock before
  filelock::unlock(hold$native)
}

sv__check_hold <- function(hold) {
  lost <- sv__why_lost(hold)
  if (!is.null(lost)) sv__stop_lost(hold, lost)
}

sv__stop_lost <- function(hold, why) {
  sv__stop(c("sv_lock_lost", "sv_lock_error"), "lock ", sv__quote(hold$path), " was lost while it was held: ", why)
}

# NULL while the kernel says that the lock is held, by this descriptor, on the file that the path names.
sv__why_lost <- function(hold) {
  if (hold$told && !sv__kernel_says_locked(hold$fd)) {
    "this process opened and closed the lock file elsewhere (reading it is enough): keep away from it"
  } else if (!identical(sv__descriptor_path(hold$fd), hold$path)) {
    "the file was deleted or replaced: never do that"
  } else if (!is.null(hold$token)) {
    last <- tryCatch(sv__read_token(hold$path), sv_error = conditionMessage)
    if (is.character(last)) last
    else if (!is.null(last) && last$token != hold$token) "somebody else has been given a token since"
  }
}

# What the kernel says of this process's descriptors, see proc_pid_fd(5) and proc_pid_fdinfo(5).

sv__descriptors <- function() {
  fds <- list.files("/proc/self/fd")
  fds[!is.na(sv__descriptor_path(fds))] # without the one of the listing, which is closed by now
}

sv__descriptor_path <- function(fd) Sys.readlink(file.path("/proc/self/fd", fd))

sv__kernel_says_locked <- function(fd) {
  lines <- tryCatch(suppressWarnings(readLines(file.path("/proc/self/fdinfo", fd))), error = function(e) character())
  any(grepl("^lock:.* POSIX ", lines))
}

# Those of `fds` that were opened by this path.
sv__named <- function(fds, path) fds[sv__descriptor_path(fds) %in% c(path, paste(path, "(deleted)"))]

# The descriptor by which filelock has just locked `path`, or NULL where it opened none: it believed to have the lock.
sv__new_descriptor <- function(path, before) {
  new <- setdiff(sv__descriptors(), before)
  locked <- Filter(sv__kernel_says_locked, new)
  found <- c(locked, sv__named(new, path)) # the second for a kernel that does not tell
  if (length(found)) found[1]
}

# Close descriptors by number. R's own way to do so is not exported; in an R without it they stay open, as filelock
# leaves them.
sv__close <- function(fds) {
  close <- get0("closeFD", asNamespace("parallel"), mode = "function")
  if (length(fds) && !is.null(close)) close(as.integer(fds))
}

# Seconds since the machine started, by a clock that nobody sets: R has no other monotonic one.
sv__uptime <- function() {
  line <- tryCatch(suppressWarnings(readLines("/proc/uptime", n = 1L)), error = function(e) "")
  if (!nzchar(line)) sv__stop("sv_lock_error", "locks need Linux, with /proc mounted")
  as.numeric(sub(" .*", "", line))
}

# The next token of the lock `path`, which this process holds alone. See docs/protocol.md for the file. SIGKILL cannot
# take back what was written; a power cut can, so every 10,000 tokens and after each boot it is synced, and a boot
# goes on after all that the last one may have given.
sv__next_token <- function(path, mode) {
  boot <- sv__boot_id()
  last <- sv__read_token(path)
  token <- if (is.null(last)) {
    floor(as.numeric(Sys.time()) * 1e6) # a deleted file does not take tokens back
  } else if (identical(last$boot, boot) && boot != "-") {
    last$token + 1
  } else {
    max(last$token, last$reserved) + 1
  }
  again <- is.null(last) || token > last$reserved || boot == "-" || !identical(last$boot, boot)
  reserved <- if (again) token + 10000 else last$reserved
  line <- charToRaw(sprintf(sv__token_format, token, reserved, boot))
  if (is.null(last)) sv__create_token(path, line, mode) else sv__overwrite(sv__token_path(path), line, "token", again)
  token
}

sv__token_format <- "sharedvol-token 1 %019.0f %019.0f %-36s\n"

sv__token_path <- function(path) paste0(path, ".token")

# list(token, reserved, boot), or NULL where there is no file. What is damaged is refused: a guess could repeat a token.
sv__read_token <- function(path) {
  file <- sv__token_path(path)
  if (!sv__exists(file)) return(NULL)
  size <- nchar(sprintf(sv__token_format, 0, 0, "-"))
  # By the size a FIFO or device is known, which could not be opened without harm.
  line <- if (!sv__is_link(file) && identical(file.size(file), as.numeric(size))) {
    tryCatch(rawToChar(sv__read(file, size)), error = function(e) "")
  }
  words <- if (!is.null(line)) sv__groups("\\Asharedvol-token 1 ([0-9]{19}) ([0-9]{19}) ([0-9a-f-]+) *\\n\\z", line)
  numbers <- suppressWarnings(as.numeric(words[1:2]))
  if (is.null(words) || any(numbers > 2^53 - 20000)) {
    sv__stop("sv_lock_error", "token file ", sv__quote(file), " is damaged: remove it while nobody holds the lock; ",
             "the next holder's token is made from the clock")
  }
  list(token = numbers[1], reserved = numbers[2], boot = words[3])
}

sv__boot_id <- function() {
  id <- tryCatch(suppressWarnings(readLines("/proc/sys/kernel/random/boot_id", n = 1L)), error = function(e) "-")
  if (sv__matches("\\A[0-9a-f-]{1,36}\\z", id)) id else "-"
}

sv__create_token <- function(path, line, mode) {
  file <- sv__token_path(path)
  temporary <- sv__temporary(path, ".sharedvol-tmp")
  on.exit(unlink(temporary, expand = FALSE))
  done <- tryCatch({
    sv__write(temporary, line, "wb")
    Sys.chmod(temporary, mode, use_umask = FALSE) && sv__sync(temporary) && file.link(temporary, file) &&
      sv__sync(dirname(file))
  }, warning = identity, error = identity)
  if (!isTRUE(done)) sv__stop_token(file, done)
}

# Write `bytes` over the beginning of a file, with one write(2). Where that fails R does not say so: it is read again.
sv__overwrite <- function(file, bytes, what, sync) {
  done <- tryCatch({
    sv__write(file, bytes, "r+b")
    identical(sv__read(file, length(bytes)), bytes) && (!sync || sv__sync(file, data = TRUE))
  }, warning = identity, error = identity)
  if (!isTRUE(done)) sv__stop_token(file, done)
}

sv__stop_token <- function(file, why) {
  why <- if (inherits(why, "condition")) conditionMessage(why) else "the disk took only a part of it"
  sv__stop("sv_lock_error", "cannot write ", sv__quote(file), ": ", why, "; there is no token without it: give this ",
           "user write permission on it and on its directory, or free some space")
}

# Say in the holder file who holds the lock, and lock that file, too: what a reader finds in it is of a living holder
# then. In this order, as closing a file drops its lock. A failure is nobody's concern: it is information only.
sv__write_holder <- function(hold, mode, purpose) {
  file <- paste0(hold$path, ".holder")
  hold$holder <- tryCatch({
    sv__make_lock_file(file, mode)
    sv__write(file, sv__holder_record(hold$token, purpose), "r+b")
    before <- sv__descriptors()
    sv__wait(file, FALSE, 0, before)
  }, warning = function(e) NULL, error = function(e) NULL)
}

# One JSON object, padded to 1,023 bytes, and a newline.
sv__holder_record <- function(token, purpose) {
  purpose <- substr(iconv(enc2utf8(purpose), "UTF-8", "UTF-8", sub = "?"), 1L, 200L)
  repeat {
    line <- sprintf('{"sharedvol":1,"token":%.0f,"since":%.6f,"replica":%s,"pid":%d,"worker":%s,"purpose":%s}', token,
                    as.numeric(Sys.time()), sv__json_string(sv_container_id()), Sys.getpid(),
                    sv__json_string(sv_worker_token()), sv__json_string(purpose))
    bytes <- charToRaw(line)
    if (length(bytes) <= 1023L) return(c(bytes, rep(charToRaw(" "), 1023L - length(bytes)), charToRaw("\n")))
    purpose <- substr(purpose, 1L, nchar(purpose) - 8L)
  }
}

sv__json_string <- function(text) {
  letters <- vapply(utf8ToInt(enc2utf8(text)), function(code) {
    if (code < 32L || code == 127L) sprintf("\\u%04x", code)
    else if (code %in% c(34L, 92L)) paste0("\\", intToUtf8(code))
    else intToUtf8(code)
  }, "")
  paste0("\"", paste(letters, collapse = ""), "\"")
}

# Whole files in one read or write: raw = TRUE, as R would otherwise look into them for a compression.

sv__read <- function(path, size) {
  source <- file(path, "rb", raw = TRUE)
  on.exit(close(source))
  readBin(source, "raw", size + 1)
}

sv__write <- function(path, bytes, mode) {
  target <- file(path, mode, raw = TRUE)
  on.exit(close(target))
  writeBin(bytes, target)
}

# fsync(2) of a file or directory, by sync(1): R has no call for it. Stops where that fails.
sv__sync <- function(path, data = FALSE) {
  said <- suppressWarnings(system2("sync", c(if (data) "-d", shQuote(path)), stdout = TRUE, stderr = TRUE))
  status <- attr(said, "status")
  if (is.null(status)) return(TRUE)
  stop("sync (of coreutils) failed with status ", status, ": ", paste(said, collapse = " "), call. = FALSE)
}


# ---- Publishing -----------------------------------------------------------------------------------------------------

# Make a file appear whole, once, without overwriting: `path` with the content `write`, which is a function that is
# given a temporary path to write to (and to close), or raw bytes, or lines of text, written in UTF-8. When it returns,
# the file is on the disk, safe from power loss; where it fails, nothing is there. Returns `path`, invisibly.
#
# Throws sv_already_published where the name is taken (with `replace` the file of that name is replaced at once), and
# sv_publish_error for all else; both are sv_error. An error of `write` passes through.
#
# A full disk: R's close() does not tell of a failed write. Of raw and text it is found by the size; a function has to
# look itself.
sv_publish <- function(path, write, replace = FALSE) {
  sv__check_published_name(path)
  if (!replace && sv__exists(path)) sv__stop_taken(path)
  # The Python library's cleaner takes a ".*.sharedvol-tmp" that nobody has locked with flock(2) for a dead writer's,
  # and R cannot lock that way. So this name is another: what a killed R leaves stays there, hidden, until somebody
  # removes it.
  directory <- tryCatch(normalizePath(dirname(path), mustWork = TRUE), error = function(e) {
    sv__publish_error(path, "its directory is missing: create it, or mount its volume")
  })
  target <- paste0(sub("/$", "", directory), "/", basename(path)) # `write` may change the working directory
  temporary <- sv__temporary(target, ".sharedvol-tmp-r")
  on.exit(unlink(temporary, recursive = TRUE, expand = FALSE))
  if (is.function(write)) {
    write(temporary)
  } else {
    bytes <- sv__content(path, write)
    sv__publishing(path, sv__write(temporary, bytes, "wb"))
    if (!identical(file.size(temporary), as.numeric(length(bytes)))) {
      sv__publish_error(path, "the disk took only a part of it: free some space")
    }
  }
  sv__check_written(path, temporary)
  # A file is finished, for the sidecar, where its change time is later than that of the last write. Within one tick
  # of the kernel's clock both are the same, so the write is dated back, by a time that R's doubles can tell.
  sv__publishing(path, Sys.setFileTime(temporary, file.mtime(temporary) - 0.001))
  # Before any name: a link to unsynced data is an empty file after a power cut.
  sv__publishing(path, sv__sync(temporary))
  if (replace) {
    sv__publishing(path, file.rename(temporary, target))
  } else if (!suppressWarnings(file.link(temporary, target))) {
    if (sv__exists(target)) sv__stop_taken(path)
    sv__publishing(path, file.link(temporary, target)) # once more, for its reason
  }
  tryCatch(sv__sync(directory), error = function(e) {
    # Readers may have the file by now, so it is not taken back.
    sv__stop("sv_publish_error", sv__quote(path), " is published, but may not survive a power cut: ",
             conditionMessage(e))
  })
  invisible(path)
}

sv__publish_error <- function(path, ...) sv__stop("sv_publish_error", "cannot publish ", sv__quote(path), ": ", ...)

sv__content <- function(path, write) {
  if (is.raw(write)) return(write)
  if (!is.character(write) || anyNA(write)) {
    sv__publish_error(path, "give a function, raw bytes, or lines of text")
  }
  charToRaw(paste0(enc2utf8(write), rep("\n", length(write)), collapse = ""))
}

# `expr`, with a warning or FALSE, by which R's file functions say that they failed, as an error.
sv__publishing <- function(path, expr) {
  why <- tryCatch(if (isFALSE(expr)) "it was refused", warning = conditionMessage, error = conditionMessage)
  if (is.character(why)) {
    sv__publish_error(path, why, "; is the directory there, writable, ",
             "not full, and of a file system with hard links?")
  }
}

sv__check_published_name <- function(path) {
  if (!is.character(path) || length(path) != 1L || is.na(path) || grepl("/$", path) ||
      basename(path) %in% c("", ".", "..")) {
    sv__stop("sv_invalid_name", deparse(path)[1], " names no file to publish")
  }
  if (grepl("^\\..*\\.sharedvol-tmp(-r)?$", basename(path))) {
    sv__stop("sv_invalid_name", sv__quote(path), " is named like a temporary file, which a cleaner would remove")
  }
}

# What a function has written: a file, which is closed. The rest of one that is not would come after its publication.
sv__check_written <- function(path, temporary) {
  if (!utils::file_test("-f", temporary) || sv__is_link(temporary)) {
    sv__publish_error(path, "`write` made no file of the path that it was given")
  }
  if (temporary %in% sv__descriptor_path(sv__descriptors())) {
    sv__publish_error(path, "`write` has left its file open: close() it there")
  }
}

# Whether the name is taken, also by a symbolic link that leads nowhere.
sv__exists <- function(path) file.exists(path) || sv__is_link(path)

sv__is_link <- function(path) nzchar(Sys.readlink(path), keepNA = TRUE) %in% TRUE

sv__stop_taken <- function(path) {
  sv__stop(c("sv_already_published", "sv_publish_error"), sv__quote(path), " exists and was left as it is: choose ",
           "another name (see sv_unique_path), or pass replace = TRUE")
}


# ---- Cache version --------------------------------------------------------------------------------------------------

# Empty the cache in `dir` where it is of another version, once among all replicas, and say whether this call did it.
# The directory is made where missing; one that holds something else than a cache is refused. Throws sv_cache_error,
# and what sv_lock() throws; all are sv_error. `timeout`: seconds to wait while another replica empties it.
#
# Only what is in <dir>/entries goes. <dir>/version, one line, says whose entries they are; it is written last, so that
# where a purger is killed the next one begins anew.
sv_purge_cache <- function(dir, version, timeout = Inf) {
  if (!is.character(version) || length(version) != 1L ||
      !grepl("^[^[:cntrl:] ]([^[:cntrl:]]{0,198}[^[:cntrl:] ])?$", version)) {
    sv__stop("sv_cache_error", "a version must be one string of 1 to 200 printable characters, no blanks around them")
  }
  dir.create(dir, showWarnings = FALSE)
  if (!dir.exists(dir)) {
    sv__stop("sv_cache_error", "cannot create cache ", sv__quote(dir), ": create its parent directory")
  }
  sv__refuse_foreign(dir)
  sv_with_lock(file.path(dir, "version.lock"), timeout = timeout, {
    stale <- !identical(sv__cache_version(dir), charToRaw(paste0(enc2utf8(version), "\n")))
    if (stale) {
      sv__refuse_foreign(dir)
      sv__empty(file.path(dir, "entries"))
      sv__write_version(dir, version)
    }
    stale
  })
}

# A mistaken path, such as that of all results, is not to be emptied.
sv__refuse_foreign <- function(dir) {
  names <- list.files(dir, all.files = TRUE, no.. = TRUE)
  foreign <- names[names != "version.lock" & !endsWith(names, ".sharedvol-tmp")]
  if (length(foreign) && !("version" %in% names)) {
    sv__stop("sv_cache_error", sv__quote(dir), " is no cache: it holds ", sv__quote(foreign[1]),
             " and no file 'version'; a cache needs a directory of its own, which may be missing or empty")
  }
}

# The bytes that say whose entries they are; NULL where there are none.
sv__cache_version <- function(dir) {
  file <- file.path(dir, "version")
  if (!sv__exists(file)) return(NULL)
  if (sv__is_link(file) || !utils::file_test("-f", file)) {
    sv__stop("sv_cache_error", sv__quote(file), " is no regular file: remove it, with the 'entries' beside it")
  }
  sv__read(file, 4096)
}

# Under the lock, so that a temporary name that is there was left by one who was killed.
sv__write_version <- function(dir, version) {
  names <- list.files(dir, pattern = "\\.sharedvol-tmp$", all.files = TRUE, full.names = TRUE)
  unlink(names, expand = FALSE)
  file <- file.path(dir, "version")
  temporary <- sv__temporary(file, ".sharedvol-tmp")
  on.exit(unlink(temporary, expand = FALSE))
  sv__publishing(file, sv__write(temporary, charToRaw(paste0(enc2utf8(version), "\n")), "wb"))
  sv__publishing(file, Sys.chmod(temporary, "0644", use_umask = FALSE))
  sv__publishing(file, sv__sync(temporary))
  sv__publishing(file, file.rename(temporary, file))
  sv__publishing(file, sv__sync(dir))
}

# Remove all that is in a directory. A replica of the old version may still write there, so more than once.
sv__empty <- function(dir) {
  if (sv__is_link(dir)) {
    sv__stop("sv_cache_error", sv__quote(dir), " is a symbolic link: put the directory itself there")
  }
  for (again in 1:100) {
    names <- list.files(dir, all.files = TRUE, no.. = TRUE, full.names = TRUE)
    if (!length(names)) return(invisible())
    unlink(names, recursive = TRUE, force = TRUE, expand = FALSE) # removes a symbolic link, not what it leads to
  }
  sv__stop("sv_cache_error", "cannot remove ", sv__quote(names[1]), ": give this user write permission")
}


# ---- SQL scripts ----------------------------------------------------------------------------------------------------


# ---- Migrations -----------------------------------------------------------------------------------------------------


# ---- Readiness ------------------------------------------------------------------------------------------------------

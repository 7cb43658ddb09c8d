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
  process <- sv__process()
  if (!identical(sv__state$worker_process, process)) {
    alphabet <- strsplit("0123456789abcdefghjkmnpqrstvwxyz", "")[[1]]
    sv__state$worker <- paste(alphabet[as.integer(sv__random_bytes(13)) %% 32L + 1L], collapse = "")
    sv__state$worker_count <- 0
    sv__state$worker_process <- process
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

# This process, and no other: its id, and when it started (field 22 of proc_pid_stat(5)). The id alone is the same in
# each container, after each restart; and what R saves to .RData, with these objects in it, may be loaded by any.
sv__process <- function() {
  stat <- tryCatch(suppressWarnings(readLines("/proc/self/stat")), error = function(e) "")
  fields <- sv__sub(".*\\) ", "", paste(stat, collapse = "\n")) # behind the program's name, which may hold anything
  paste(Sys.getpid(), strsplit(fields, " ", fixed = TRUE)[[1]][20])
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
  sv__matches("\\A(?i:|default|localhost|localhost\\.localdomain|\\(none\\)|unknown)\\z", name)
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

# Take the bytes of strings for UTF-8, which they are wherever Latin-1 was not said: drivers, files and list.files() do
# not mark what they give, and enc2utf8() would ask the locale (in C it makes <c3><a9> of an e with an accent).
sv__utf8 <- function(text) {
  latin1 <- Encoding(text) == "latin1"
  text[latin1] <- enc2utf8(text[latin1])
  Encoding(text) <- "UTF-8"
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
#   allow_network  accept a network file system, where two replicas may hold one lock at once. Otherwise it is an
#            sv_network_warning, once for each mount, or with SHAREDVOL_STRICT=1 an sv_network_error.
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
sv_lock <- function(path, timeout = Inf, shared = FALSE, mode = "0666", fenced = FALSE, purpose = "",
                    allow_network = FALSE) {
  sv__check_lock_arguments(timeout, shared, fenced, purpose)
  path <- sv__lock_path(path)
  sv__drop_inherited()
  hold <- sv__state$holds[[path]]
  if (is.null(hold)) {
    hold <- sv__take(path, timeout, shared, mode, allow_network)
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
  lock$process <- sv__process()
  class(lock) <- "sv_lock"
  lock
}

# Give back what sv_lock() returned, once. In a forked child, which started without the lock, it does nothing.
# Throws sv_lock_lost where the lock was lost while it was held: what was done under it may be wrong.
sv_unlock <- function(lock) {
  if (!inherits(lock, "sv_lock")) sv__stop("sv_lock_error", "sv_unlock() takes what sv_lock() returned")
  if (!identical(lock$process, sv__process())) return(invisible(FALSE))
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
  inherits(lock, "sv_lock") && identical(lock$process, sv__process()) && !is.null(lock$hold) &&
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
  } else if (nchar(sv__valid_utf8(purpose)) > 200L) {
    "purpose has more than 200 characters"
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
  process <- sv__process()
  if (!identical(sv__state$holds_process, process)) {
    for (hold in sv__state$holds) {
      filelock::unlock(hold$native)
      if (!is.null(hold$holder)) filelock::unlock(hold$holder)
    }
    sv__state$holds <- list()
    sv__state$holds_process <- process
  }
}

sv__take <- function(path, timeout, shared, mode, allow_network) {
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
      if (!allow_network) sv__check_mount(fd, path)
      return(sv__keep(path, shared, native, fd))
    }
    filelock::unlock(native) # deleted or replaced while we waited
    replaced <- replaced + 1
  }
  sv__lock_error(path, " is deleted or replaced again and again: find out by whom, and stop it")
}

# Remember the lock that filelock has just taken.
sv__keep <- function(path, shared, native, fd) {
  hold <- list2env(list(path = path, shared = shared, native = native, fd = fd, count = 0), parent = emptyenv())
  hold$told <- sv__kernel_says_locked(fd)
  others <- vapply(sv__state$holds, function(other) sv__inode(other$fd), "")
  if (!hold$told && sv__inode(fd) %in% others[nzchar(others)]) {
    # To the kernel it is one lock of this process, which ends when either descriptor is closed.
    sv__lock_error(path, " is another name of a lock file that this process holds, and has lost by opening it again")
  }
  sv__state$holds[[path]] <- hold
  hold
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
    sv__close(sv__named(sv__new_descriptors(before), path))
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
    if (suppressWarnings(sv__create(temporary)) && Sys.chmod(temporary, mode, use_umask = FALSE)) {
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

# Create an empty file that only this user can open, whatever the umask. Its mode is set later, so it is never wider
# than wanted: another user's process that opened it meanwhile could keep it open.
sv__create <- function(path) {
  umask <- Sys.umask("077")
  on.exit(Sys.umask(umask))
  file.create(path)
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

# What each is open on, by their numbers.
sv__descriptors <- function() {
  fds <- list.files("/proc/self/fd")
  paths <- stats::setNames(sv__descriptor_path(fds), fds)
  paths[!is.na(paths)] # without the one of the listing, which is closed by now
}

# The numbers of those that were not there `before`. A number that was may be another file's by now: R closes forgotten
# connections when it collects garbage, which may be in the midst of filelock::lock().
sv__new_descriptors <- function(before) {
  now <- sv__descriptors()
  names(now)[!(paste(names(now), now) %in% paste(names(before), before))]
}

sv__descriptor_path <- function(fd) Sys.readlink(file.path("/proc/self/fd", fd))

# A file system that keeps locks by itself (some of FUSE) may not tell.
sv__kernel_says_locked <- function(fd) any(grepl("^lock:.* POSIX ", sv__descriptor_lines(fd)))

# Empty before Linux 5.14.
sv__inode <- function(fd) c(grep("^ino:", sv__descriptor_lines(fd), value = TRUE), "")[1]

sv__descriptor_lines <- function(fd) {
  tryCatch(suppressWarnings(readLines(file.path("/proc/self/fdinfo", fd))), error = function(e) character())
}

# Those of `fds` that were opened by this path.
sv__named <- function(fds, path) fds[sv__descriptor_path(fds) %in% c(path, paste(path, "(deleted)"))]

# Warn of a network file system, once for each mount, or stop: see proc_pid_mountinfo(5) for the fields. What is done
# about which kinds is as in docs/locks.md.
sv__check_mount <- function(fd, path) {
  id <- sub("^mnt_id:\\s*", "", grep("^mnt_id:", sv__descriptor_lines(fd), value = TRUE))
  mounts <- tryCatch(suppressWarnings(readLines("/proc/self/mountinfo")), error = function(e) character())
  mount <- mounts[startsWith(mounts, paste0(id, " "))]
  if (length(id) != 1L || length(mount) != 1L) return(invisible())
  kind <- sub(" .*", "", sub(".* - ", "", mount))
  if (!sv__is_network(kind) || mount %in% sv__state$networks) return(invisible())
  point <- gsub("\\040", " ", strsplit(mount, " ", fixed = TRUE)[[1]][5], fixed = TRUE)
  text <- paste0(
    "lock ", sv__quote(path), " is on ", kind, " (mounted at ", sv__quote(point), "): two mounts may each keep their ",
    "own locks, so two replicas can hold one at once; test it with `sharedvol doctor ", shQuote(point),
    " --peer NAME` in two containers and then set allow_network = TRUE, or use a lock on a server"
  )
  strict <- tolower(trimws(Sys.getenv("SHAREDVOL_STRICT")))
  if (!(strict %in% c("", "0", "false", "no", "off"))) sv__stop(c("sv_network_error", "sv_lock_error"), text)
  warning(structure(class = c("sv_network_warning", "warning", "condition"), list(message = text, call = NULL)))
  sv__state$networks <- c(sv__state$networks, mount)
}

sv__network_kinds <- strsplit(paste(
  "9p acfs afs beegfs ceph cifs coda davfs davfs2 drvfs fakeowner fhgfs gfs gfs2 glusterfs gpfs hgfs lustre mvfs ncpfs",
  "nfs nfs3 nfs4 ocfs2 orangefs osxfs panfs prl_fs pvfs2 smb smb2 smb3 smbfs sshfs vboxsf virtiofs vmhgfs vxfs wekafs"
), " ")[[1]]

# FUSE counts whole, but for what container engines and the system mount themselves.
sv__is_network <- function(kind) {
  kind %in% c("fuse", sv__network_kinds) || startsWith(kind, "fuse.") &&
    !(kind %in% c("fuse.fuse-overlayfs", "fuse.lxcfs", "fuse.snapfuse", "fuse.squashfuse"))
}

# The descriptor by which filelock has just locked `path`, or NULL where it opened none: it believed to have the lock.
sv__new_descriptor <- function(path, before) {
  new <- sv__new_descriptors(before)
  named <- sv__named(new, path)
  locked <- Filter(sv__kernel_says_locked, new)
  # The second for a file system that does not tell, the third for a file that was renamed.
  found <- c(intersect(named, locked), named, locked)
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

# The next token of the lock `path`, which this process holds alone. See docs/protocol.md for the file. SIGKILL takes
# back nothing that was written; a power cut takes back what was not synced. So every 10,000 tokens a reservation is
# synced, and the first token after another boot is above the last one. It is written without a boot first: were its
# writer killed before the sync, the next holder would take it for one that is on the disk.
sv__next_token <- function(path, mode) {
  boot <- sv__boot_id()
  last <- sv__read_token(path)
  if (is.null(last)) {
    sv__create_token(path, floor(as.numeric(Sys.time()) * 1e6) - 1, mode) # a deleted file does not take tokens back
    last <- sv__read_token(path)
  }
  same_boot <- identical(last$boot, boot) && boot != "-"
  token <- (if (same_boot) last$token else max(last$token, last$reserved)) + 1
  if (same_boot && token <= last$reserved) {
    sv__write_token(path, token, last$reserved, boot)
  } else {
    sv__write_token(path, token, token + 10000, "-", sync = TRUE)
    if (!same_boot) sv__token_step(path, sv__sync(dirname(path))) # its maker may have been killed before that
    if (boot != "-") sv__write_token(path, token, token + 10000, boot)
  }
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
  words <- if (!is.null(line)) sv__groups("\\Asharedvol-token 1 ([0-9]{19}) ([0-9]{19}) ([!-~]{1,36}) *\\n\\z", line)
  numbers <- suppressWarnings(as.numeric(words[1:2]))
  if (is.null(words) || any(numbers > 2^53 - 1 - 20000)) {
    sv__stop("sv_lock_error", "token file ", sv__quote(file), " is damaged: remove it while nobody holds the lock; ",
             "the next holder's token is made from the clock")
  }
  list(token = numbers[1], reserved = numbers[2], boot = words[3])
}

sv__boot_id <- function() {
  id <- tryCatch(suppressWarnings(readLines("/proc/sys/kernel/random/boot_id", n = 1L)), error = function(e) "-")
  if (sv__matches("\\A[!-~]{2,36}\\z", id)) id else "-"
}

sv__create_token <- function(path, token, mode) {
  file <- sv__token_path(path)
  temporary <- sv__temporary(path, ".sharedvol-tmp")
  on.exit(unlink(temporary, expand = FALSE))
  line <- charToRaw(sprintf(sv__token_format, token, token, "-"))
  sv__token_step(path, sv__create(temporary))
  sv__token_step(path, sv__write(temporary, line, "wb"))
  sv__token_step(path, identical(sv__read(temporary, length(line)), line))
  sv__token_step(path, Sys.chmod(temporary, mode, use_umask = FALSE))
  sv__token_step(path, sv__sync(temporary))
  sv__token_step(path, file.link(temporary, file))
  sv__token_step(path, sv__sync(dirname(file)))
}

# In place, with one write(2). Where that fails R does not say so: it is read again.
sv__write_token <- function(path, token, reserved, boot, sync = FALSE) {
  file <- sv__token_path(path)
  line <- charToRaw(sprintf(sv__token_format, token, reserved, boot))
  sv__token_step(path, sv__write(file, line, "r+b"))
  sv__token_step(path, identical(sv__read(file, length(line)), line))
  if (sync) sv__token_step(path, sv__sync(file, data = TRUE))
}

# `expr`, with a warning or FALSE as an error.
sv__token_step <- function(path, expr) {
  why <- tryCatch(if (isFALSE(expr)) "the disk did not take it", warning = conditionMessage, error = conditionMessage)
  if (is.character(why)) {
    sv__stop("sv_lock_error", "cannot write ", sv__quote(sv__token_path(path)), ": ", why, "; there is no token ",
             "without it: give this user write permission on it and on its directory, or free some space")
  }
}

# Say in the holder file who holds the lock, and lock that file, too: what a reader finds in it is of a living holder
# then. In this order, as closing a file drops its lock. A failure is nobody's concern: it is information only.
sv__write_holder <- function(hold, mode, purpose) {
  file <- paste0(hold$path, ".holder")
  hold$holder <- tryCatch({
    sv__make_lock_file(file, mode)
    sv__write(file, sv__holder_record(hold$token, purpose), if (file.size(file) > 1024) "wb" else "r+b")
    before <- sv__descriptors()
    sv__wait(file, FALSE, 0, before)
  }, warning = function(e) NULL, error = function(e) NULL)
}

# One JSON object, padded to 1,023 bytes, and a newline.
sv__holder_record <- function(token, purpose) {
  purpose <- sv__valid_utf8(purpose)
  replica <- tryCatch(sv__json_string(sv_container_id()), sv_identity_error = function(e) "null")
  repeat {
    line <- sprintf('{"sharedvol":1,"token":%.0f,"since":%.6f,"replica":%s,"pid":%d,"worker":%s,"purpose":%s}', token,
                    as.numeric(Sys.time()), replica, Sys.getpid(), sv__json_string(sv_worker_token()),
                    sv__json_string(purpose))
    bytes <- charToRaw(line)
    if (length(bytes) <= 1023L) return(c(bytes, rep(charToRaw(" "), 1023L - length(bytes)), charToRaw("\n")))
    purpose <- substr(purpose, 1L, nchar(purpose) - 1L)
  }
}

sv__valid_utf8 <- function(text) iconv(sv__utf8(text), "UTF-8", "UTF-8", sub = "?")

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
# Throws sv_already_published where the name is taken, and sv_publish_error for all else; both are sv_error. With
# `replace` a file or symbolic link of that name is replaced at once, and any other thing, such as a FIFO or a device,
# is an sv_publish_error. An error of `write` passes through.
#
# A full disk: R's cat() and close() do not tell of a failed write. Of raw and text it is found by the size; behind a
# function 64 KiB must be free. That is found out too late where somebody else freed space meanwhile.
sv_publish <- function(path, write, replace = FALSE) {
  given <- path
  path <- sv__published_name(path)
  if (replace) sv__refuse_special(path) else if (sv__exists(path)) sv__stop_taken(path)
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
    sv__refuse_full(path, target)
  } else {
    bytes <- sv__content(path, write)
    sv__publishing(path, sv__write(temporary, bytes, "wb"))
    if (!identical(file.size(temporary), as.numeric(length(bytes)))) {
      sv__publish_error(path, "the disk took only a part of it: free some space")
    }
  }
  sv__check_written(path, temporary)
  # The mark by which the sidecar collects the file at once (PUB-4 of the protocol).
  sv__publishing(path, Sys.setFileTime(temporary, sv__marked_time(file.mtime(temporary), file.size(temporary))))
  # Before any name: a link to unsynced data is an empty file after a power cut.
  sv__publishing(path, sv__sync(temporary))
  if (replace) {
    sv__refuse_special(target) # again: it may have been made meanwhile
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
  invisible(given)
}

# The modification time that marks a file of `size` bytes, last written at `time`, as published: the microseconds are
# a function of the second and the size. It is at most two seconds earlier. In the first second of a day (UTC) it may
# be up to a second later, because a collected file's directory is named after the day. A double holds times of this
# century to about a quarter of a microsecond, so half a microsecond is added: the microsecond stays the same when it
# is cut off.
sv__marked_time <- function(time, size) {
  time <- as.numeric(time)
  second <- floor(time)
  microsecond <- sv__mark(second, size)
  if (second %% 86400 != 0 && microsecond >= floor((time - second) * 1e6)) {
    second <- second - 1
    microsecond <- sv__mark(second, size)
  }
  .POSIXct(second + (microsecond + 0.5) / 1e6)
}

sv__mark <- function(second, size) 1 + (second %% 999983 * 374761 + size %% 999983 * 668265) %% 999983

sv__publish_error <- function(path, ...) sv__stop("sv_publish_error", "cannot publish ", sv__quote(path), ": ", ...)

# Of a file that was cut off, as the disk was full, cat() and close() say nothing. What is free then is less than one of
# their buffers, so a file that is larger finds it out. It has to be free behind a good file, too.
sv__refuse_full <- function(path, target) {
  probe <- sv__temporary(target, ".sharedvol-tmp-r")
  on.exit(unlink(probe, expand = FALSE))
  bytes <- sv__random_bytes(65536) # which no file system makes less of
  sv__publishing(path, sv__write(probe, bytes, "wb"))
  if (!identical(file.size(probe), as.numeric(length(bytes)))) {
    sv__publish_error(path, "the disk is full, and so the file may be cut off: free some space")
  }
}

sv__content <- function(path, write) {
  if (is.raw(write)) return(write)
  if (!is.character(write) || anyNA(write)) {
    sv__publish_error(path, "give a function, raw bytes, or lines of text")
  }
  charToRaw(paste0(sv__utf8(write), rep("\n", length(write)), collapse = ""))
}

# `expr`, with a warning or FALSE, by which R's file functions say that they failed, as an error.
sv__publishing <- function(path, expr) {
  why <- tryCatch(if (isFALSE(expr)) "it was refused", warning = conditionMessage, error = conditionMessage)
  if (is.character(why)) {
    sv__publish_error(path, why, "; is the directory there, writable, ",
             "not full, and of a file system with hard links?")
  }
}

# `path` in bytes, which the locale cannot make another name of.
sv__published_name <- function(path) {
  bytes <- if (is.character(path) && length(path) == 1L && !is.na(path)) sv__bytes(path) else ""
  if (grepl("/$", bytes) || basename(bytes) %in% c("", ".", "..")) {
    sv__stop("sv_invalid_name", deparse(path)[1], " names no file to publish")
  }
  if (grepl("^\\..*\\.sharedvol-tmp(-r)?$", basename(bytes))) {
    sv__stop("sv_invalid_name", sv__quote(path), " is named like a temporary file, which a cleaner would remove")
  }
  bytes
}

# What a function has written: a file, which is closed. The rest of one that is not would come after its publication.
sv__check_written <- function(path, temporary) {
  if (!sv__is_file(temporary) || sv__is_link(temporary)) {
    sv__publish_error(path, "`write` made no file of the path that it was given")
  }
  if (temporary %in% sv__descriptors()) {
    sv__publish_error(path, "`write` has left its file open: close() it there")
  }
}

# Whether the name is taken, also by a symbolic link that leads nowhere.
sv__exists <- function(path) file.exists(path) || sv__is_link(path)

sv__is_link <- function(path) nzchar(Sys.readlink(path), keepNA = TRUE) %in% TRUE

# Whether it is a regular file, or a link to one. R's own test takes a FIFO or a device for one; their size is 0.
sv__is_file <- function(path) {
  info <- file.info(path, extra_cols = FALSE)
  isFALSE(info$isdir) && (info$size > 0 || system2("test", c("-f", shQuote(path))) == 0L)
}

# A rename would replace a device, FIFO or socket as well, which other programs use.
sv__refuse_special <- function(path) {
  if (sv__exists(path) && !sv__is_link(path) && !sv__is_file(path)) {
    sv__publish_error(path, "what is there is not a file, and only files are replaced: publish under another name, ",
                      "or remove it first")
  }
}

sv__stop_taken <- function(path) {
  sv__stop(c("sv_already_published", "sv_publish_error"), sv__quote(path), " exists and was left as it is: choose ",
           "another name (see sv_unique_path), or pass replace = TRUE")
}


# ---- Cache version --------------------------------------------------------------------------------------------------

# Empty the cache in `dir` where it is of another version, once among all replicas, and say whether this call did it.
# The directory is made where missing; one that holds something else than a cache is refused. Throws sv_cache_error,
# and what sv_lock() throws; all are sv_error. `timeout`: seconds to wait while another replica empties it.
# `allow_network` as for sv_lock().
#
# Only what is in <dir>/entries goes. <dir>/version, one line, says whose entries they are; it is written last, so that
# where a purger is killed the next one begins anew.
sv_purge_cache <- function(dir, version, timeout = Inf, allow_network = FALSE) {
  if (!is.character(version) || length(version) != 1L ||
      !grepl("^[^[:cntrl:] ]([^[:cntrl:]]{0,198}[^[:cntrl:] ])?$", version)) {
    sv__stop("sv_cache_error", "a version must be one string of 1 to 200 printable characters, no blanks around them")
  }
  dir.create(dir, showWarnings = FALSE)
  if (!dir.exists(dir)) {
    sv__stop("sv_cache_error", "cannot create cache ", sv__quote(dir), ": create its parent directory")
  }
  sv__refuse_foreign(dir)
  sv_with_lock(file.path(dir, "version.lock"), timeout = timeout, allow_network = allow_network, {
    stale <- !identical(sv__cache_version(dir), charToRaw(paste0(sv__utf8(version), "\n")))
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
  if (sv__is_link(file) || !sv__is_file(file)) {
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
  sv__publishing(file, sv__create(temporary))
  sv__publishing(file, sv__write(temporary, charToRaw(paste0(sv__utf8(version), "\n")), "wb"))
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
#
# Taking a script apart by the rules of the stock MySQL and MariaDB clients: the same statements as
# sharedvol.migrations.split_script. R has no regular expression that begins at a position of a long text without
# copying the text, so this walks over tables of positions instead: each byte is looked at a few times.

# Stop with a condition of these classes, which is an sv_error, too. Further arguments are its fields.
sv__sql_stop <- function(classes, message, ...) {
  stop(structure(class = c(classes, "sv_error", "error", "condition"), list(message = message, call = NULL, ...)))
}

# Split a script into statements, as a character vector (UTF-8).
#   text: one string, or the bytes of a file (raw); UTF-8 either way.
#   backslash_escapes: FALSE for a server whose sql_mode has NO_BACKSLASH_ESCAPES.
# Stops with an sv_script_error ($line, $what) for a string, quoted identifier or comment that does not end, a last
# statement without the delimiter that was set, a client command that is not SQL, a NUL, and bytes that are not UTF-8.
sv_split_sql <- function(text, backslash_escapes = TRUE) {
  sv__parse_sql(text, backslash_escapes)$text
}

# As sv_split_sql(), with the line where each statement begins: list(text, line).
sv__parse_sql <- function(text, backslash_escapes = TRUE) {
  raw <- sv__sql_bytes(text)
  n <- length(raw)
  none <- n + 1L  # the position behind the last byte: "there is none"
  byte <- c(as.integer(raw), rep(-1L, 32L))  # so that looking ahead needs no question for the end
  here <- seq_len(n)
  newlines <- cumsum(byte[here] == 10L)

  # For each position the first of `hits` at or behind it.
  following <- function(hits) {
    table <- rep(none, n + 4L)
    if (length(hits)) table[seq_len(hits[length(hits)])] <- rep(hits, diff(c(0L, hits)))
    table
  }
  is <- function(character, ahead = 0L) byte[here + ahead] == utf8ToInt(character)
  white <- byte %in% c(9:13, 32L)
  opens <- is("/") & is("*", 1L)
  closes <- is("*") & is("/", 1L)
  comments_line <- is("#") | (is("-") & is("-", 1L) & (white[here + 2L] | here + 2L > n))
  special_at <- following(which(
    is("\\") | is("'") | is("\"") | is("`") | is("$") | opens | closes | comments_line
  ))
  solid_at <- following(which(!white[here]))
  newline_at <- following(which(is("\n")))
  open_at <- following(which(opens))
  close_at <- following(which(closes))
  backslash_at <- following(which(is("\\")))
  dollar_at <- following(which(is("$")))
  quote_at <- lapply(c("'" = "'", "\"" = "\"", "`" = "`"), function(quote) following(which(is(quote))))
  end_of_line <- function(at) newline_at[at]

  piece <- function(from, behind) {
    if (behind <= from) return("")
    found <- rawToChar(raw[from:(behind - 1L)])
    Encoding(found) <- "UTF-8"
    found
  }
  starts <- function(at, codes) all(byte[at + seq_along(codes) - 1L] == codes)
  fail <- function(at, what) {
    line <- 1L + if (at > 1L) newlines[at - 1L] else 0L
    sv__sql_stop("sv_script_error", sprintf("line %d: %s", line, what), what = what, line = line)
  }
  if (any(nul <- byte[here] == 0L)) fail(which(nul)[1L], "a NUL character cannot be part of a statement")
  sv__check_utf8(raw)

  delimiter <- ""
  delimiter_codes <- delimiter_at <- integer()
  tables <- list()  # by delimiter: a dump goes to and fro between two
  set_delimiter <- function(new) {
    if (is.null(tables[[new]])) {
      codes <- utf8ToInt(new)
      hits <- which(byte[here] == codes[1L])
      for (ahead in seq_along(codes[-1L])) hits <- hits[byte[hits + ahead] == codes[ahead + 1L]]
      tables[[new]] <<- following(hits)  # they may overlap, which gregexpr() would not find
    }
    delimiter <<- new
    delimiter_codes <<- utf8ToInt(new)
    delimiter_at <<- tables[[new]]
  }

  # Where the statements are; cut out at the end.
  count <- 0L
  from <- behinds <- integer(64L)
  keep <- function(begin, behind) {
    count <<- count + 1L
    if (count > length(from)) {
      from <<- c(from, integer(count))
      behinds <<- c(behinds, integer(count))
    }
    from[count] <<- begin
    behinds[count] <<- behind
  }
  trimmed <- function(begin, behind) {
    while (behind > begin && white[behind - 1L]) behind <- behind - 1L
    behind
  }

  # The client command that the text from `begin` is, as the client reads it; "" if it is SQL.
  command_at <- function(begin, behind) {
    letter <- byte[begin - 1L + 1:30] %in% c(65:90, 97:122, 95L)  # longer than any of them
    ended <- begin + if (byte[begin] == 63L) 1L else match(FALSE, letter, nomatch = 31L) - 1L
    if (ended == begin || ended > behind) return("")
    if (ended < behind && !(byte[ended] %in% c(9L, 32L))) return("")
    word <- tolower(piece(begin, ended))
    if (word %in% sv__sql_commands$with_arguments) return(word)
    if (!(word == "use" || word %in% sv__sql_commands$plain)) return("")
    arguments <- solid_at[ended] < behind
    if (arguments == (word == "use")) word else ""
  }
  refuse_command <- function(at, command) {
    fail(at, sprintf("the client command %s is not SQL: leave it out", sv__sql_quoted(command)))
  }
  is_delimiter_word <- function(at) {
    if (!(byte[at] %in% c(68L, 100L)) || !(white[at + 9L] || at + 9L > n)) return(FALSE)
    at + 8L <= n && identical(tolower(piece(at, at + 9L)), "delimiter")
  }
  obey_delimiter <- function(at, behind) {
    first <- solid_at[at + 9L]
    behind <- trimmed(first, behind)
    quote <- piece(first, min(first + 1L, behind))
    last <- first
    if (quote %in% names(quote_at)) {
      first <- first + 1L
      last <- min(quote_at[[quote]][first], behind)
    } else {
      while (last < behind && !white[last]) last <- last + 1L
    }
    new <- piece(first, last)
    if (!nzchar(new)) fail(at, "DELIMITER must be followed by the delimiter, as in 'DELIMITER //'")
    if (grepl("\\", new, fixed = TRUE)) fail(at, "a delimiter cannot contain a backslash")
    if (any(charToRaw(new) > 0x7f)) fail(at, "the client never finds a delimiter that is not ASCII")
    if (nchar(new) > 15L) fail(at, "a delimiter has at most 15 characters")  # the client would cut it silently
    set_delimiter(new)
  }

  # Obey a client command on this line; where the line ends, or 0 if it is SQL.
  command_line <- function(at) {
    behind <- end_of_line(at)
    if (is_delimiter_word(at)) {
      obey_delimiter(at, behind)
      return(behind)
    }
    command <- command_at(at, behind)
    if (command == "") return(0L)
    # The client, too, takes a line with a delimiter in it for SQL.
    if (delimiter_at[at] + length(delimiter_codes) <= behind) return(0L)
    if (grepl("\\g", piece(at, behind), fixed = TRUE, useBytes = TRUE)) return(0L)
    if (command != "use") refuse_command(at, command)
    keep(at, trimmed(at, behind))
    behind
  }

  # DELIMITER behind something else on its line: the client obeys it if the old delimiter is there.
  late_delimiter <- function(at) {
    behind <- delimiter_at[at]
    if (behind > n || newline_at[at] < behind) fail(at, "DELIMITER must stand at the start of its line")
    next_begin <- behind + length(delimiter_codes)
    obey_delimiter(at, behind)
    next_begin
  }

  is_conditional <- function(at) byte[at + 2L] == 33L || (byte[at + 2L] == 77L && byte[at + 3L] == 33L)  # "!", "M!"

  # The client's rules for what is in a comment: an end that has a "/*!" before it on its line belongs to that, so
  # that part of a dump can be commented out; and so does one to a "/*!" before the comment.
  end_of_comment <- function(opened, in_conditional = FALSE) {
    to_star <- function(at) if (close_at[at] < newline_at[at]) close_at[at] + 1L else newline_at[at]
    at <- opened + 2L
    if (in_conditional) at <- to_star(at)
    repeat {
      closed <- close_at[at]
      nested <- open_at[at]
      if (closed > n) fail(opened, "the comment '/*' is not closed")
      if (closed < nested) return(closed + 2L)
      at <- if (byte[nested + 2L] == 33L) to_star(nested + 3L) else nested + 2L
    }
  }
  end_of_string <- function(opened, quote) {
    ends <- quote_at[[quote]]
    at <- opened + 1L
    escapes <- backslash_escapes && quote != "`"
    while (escapes && backslash_at[at] < ends[at]) at <- min(backslash_at[at] + 2L, none)
    if (ends[at] > n) {
      what <- if (quote == "`") "quoted identifier" else "string"
      fail(opened, sprintf("the %s that opens with %s is not closed", what, quote))
    }
    ends[at] + 1L
  }
  # MySQL 9 quotes with $$ and $tag$: where the opening one ends; 0 if it is none.
  end_of_tag <- function(at) {
    if (at > 1L) {
      begin <- at - 1L
      while (begin > 1L && bitwAnd(byte[begin], 0xC0L) == 0x80L) begin <- begin - 1L
      if (byte[at - 1L] == 36L || sv__sql_is_word(piece(begin, at))) return(0L)
    }
    closed <- dollar_at[at + 1L]
    if (closed > n || (closed > at + 1L && !sv__sql_is_word(piece(at + 1L, closed)))) 0L else closed + 1L
  }
  end_of_dollars <- function(opened, behind_tag) {
    tag <- byte[opened:(behind_tag - 1L)]
    at <- dollar_at[behind_tag]
    while (at <= n && !starts(at, tag)) at <- dollar_at[at + 1L]
    if (at > n) fail(opened, sprintf("the text that opens with %s is not closed", piece(opened, behind_tag)))
    at + length(tag)
  }

  take <- function(begin, end, behind) {
    end <- trimmed(begin, end)
    if (end > begin) {
      command <- command_at(begin, end)
      if (!(command %in% c("", "help", "use"))) refuse_command(begin, command)
      if (end - begin == 9L && tolower(piece(begin, end)) == "delimiter") obey_delimiter(begin, end)
      keep(begin, end)
    }
    behind
  }

  # Take the statement that begins here; where the next may begin. Comments at its end are left out, those in it stay.
  statement <- function(begin) {
    at <- end <- begin
    conditional <- 0L  # where the "/*!" that is open began
    nesting <- 0L  # where its first line ends
    repeat {
      special <- min(special_at[at], delimiter_at[at])
      if (special > n) break
      if (solid_at[at] < special) end <- special
      code <- byte[special]
      if (code == 92L) {  # a backslash
        follows <- byte[special + 1L]
        if (conditional == 0L && follows %in% c(103L, 71L)) return(take(begin, end, special + 2L))  # \g, \G
        # \N is a value; mariadb-dump begins with /*M!999999\- enable the sandbox mode */
        if (!(follows == 78L || (conditional > 0L && follows == 45L))) {
          last <- min(special + 2L, none)
          while (last <= n && bitwAnd(byte[last], 0xC0L) == 0x80L) last <- last + 1L
          refuse_command(special, piece(special, last))
        }
        at <- end <- special + 2L
      } else if (delimiter_at[special] == special) {
        if (conditional > 0L) {
          fail(conditional,
               sprintf("the comment '/*!' is not closed before the delimiter %s", sv__sql_quoted(delimiter)))
        }
        return(take(begin, end, special + length(delimiter_codes)))
      } else if (code %in% c(39L, 34L, 96L)) {
        at <- end <- end_of_string(special, intToUtf8(code))
      } else if (code == 36L) {
        behind_tag <- end_of_tag(special)
        at <- end <- if (behind_tag > 0L) end_of_dollars(special, behind_tag) else special + 1L
      } else if (code == 35L || code == 45L) {
        at <- end_of_line(special)
      } else if (code == 47L && byte[special + 2L] == 43L) {
        at <- end <- end_of_comment(special)  # a hint
      } else if (code == 47L && !is_conditional(special)) {
        if (special < nesting && conditional > 0L) {
          at <- end <- end_of_comment(special, in_conditional = TRUE)
          conditional <- 0L
        } else {
          at <- end_of_comment(special)
        }
      } else if (code == 47L) {
        conditional <- special
        nesting <- if (byte[special + 2L] == 77L) 0L else end_of_line(special)
        at <- end <- special + 2L
      } else if (conditional == 0L) {
        at <- end <- special + 1L  # a star: the slash may open a comment, as in 2*/* two */2
      } else {
        conditional <- 0L
        at <- end <- special + 2L
      }
    }
    if (solid_at[at] <= n) end <- none
    if (conditional > 0L) fail(conditional, "the comment '/*!' is not closed")
    if (delimiter != ";") {
      fail(begin, sprintf("the last statement does not end with its delimiter %s", sv__sql_quoted(delimiter)))
    }
    take(begin, end, none)
  }

  set_delimiter(";")
  fresh <- TRUE  # nothing but white space so far on this line
  at <- 1L
  while (at <= n) {  # over one thing between statements, or one statement
    if (white[at]) {
      solid <- solid_at[at]
      fresh <- fresh || newline_at[at] < solid
      at <- solid
      next
    }
    if (fresh && (behind <- command_line(at)) > 0L) {
      at <- behind
      next
    }
    fresh <- FALSE
    at <- if (is_delimiter_word(at)) {
      late_delimiter(at)
    } else if (delimiter_at[at] == at) {
      at + length(delimiter_codes)
    } else if (byte[at] == 35L || (byte[at] == 45L && byte[at + 1L] == 45L)) {  # here "--" alone is a comment, too
      end_of_line(at)
    } else if (byte[at] == 47L && byte[at + 1L] == 42L && !is_conditional(at)) {
      end_of_comment(at)
    } else {
      statement(at)
    }
  }
  found <- seq_len(count)
  text <- vapply(found, function(one) piece(from[one], behinds[one]), "")
  list(text = text, line = 1L + c(0L, newlines)[from[found]])
}

# The client's own commands: those that mean nothing to a server.
sv__sql_commands <- list(
  plain = strsplit(paste("clear edit ego exit go nopager notee nowarning print quit rehash resetconnection sandbox",
                         "ssl_session_data_print status warnings"), " ")[[1L]],
  with_arguments = strsplit("? charset connect help pager prompt query_attributes source system tee", " ")[[1L]]
)

# The bytes of a script without a byte order mark, lines ending in LF.
sv__sql_bytes <- function(text) {
  if (is.character(text) && length(text) == 1L && !is.na(text)) {
    if (Encoding(text) == "latin1") text <- enc2utf8(text)
    text <- charToRaw(text)  # any other is taken for what it is in UTF-8, also where the locale is "C"
  }
  if (!is.raw(text)) stop("a script is one string, or the bytes of one")
  if (length(text) >= 3L && all(text[1:3] == as.raw(c(0xef, 0xbb, 0xbf)))) text <- text[-(1:3)]
  if (length(text) > 1L) text <- text[!(text == 0x0d & c(text[-1L], as.raw(0L)) == 0x0a)]
  text
}

# Stop with an sv_script_error unless the bytes are UTF-8.
sv__check_utf8 <- function(raw) {
  raw <- raw[raw != 0x00]  # which R has in no string, and which is another mistake
  if (validUTF8(rawToChar(raw))) return(invisible())
  lines <- strsplit(rawToChar(raw), "\n", fixed = TRUE, useBytes = TRUE)[[1L]]
  line <- which(!validUTF8(lines))[1L]
  sv__sql_stop("sv_script_error", sprintf("line %d: not UTF-8: save it as UTF-8", line),
              what = "not UTF-8: save it as UTF-8", line = line)
}

# Whether it is one word or part of one: letters of any script, digits and _.
sv__sql_is_word <- function(text) {
  if (grepl("^[A-Za-z0-9_]+\\z", text, perl = TRUE, useBytes = TRUE)) return(TRUE)
  any(charToRaw(text) > 0x7f) && grepl("(*UCP)^\\w+\\z", text, perl = TRUE)
}

# In quotes and on one line, for a message: as Python's repr().
sv__sql_quoted <- function(text) {
  for (escape in list(c("\\", "\\\\"), c("\n", "\\n"), c("\r", "\\r"), c("\t", "\\t"))) {
    text <- gsub(escape[1L], escape[2L], text, fixed = TRUE)
  }
  characters <- strsplit(text, "")[[1L]]
  for (one in which(grepl(sv__sql_unprintable, characters, perl = TRUE))) {
    code <- utf8ToInt(characters[one])
    form <- if (code < 0x100L) "\\x%02x" else if (code < 0x10000L) "\\u%04x" else "\\U%08x"
    characters[one] <- sprintf(form, code)
  }
  text <- paste(characters, collapse = "")
  if (!grepl("'", text, fixed = TRUE)) return(paste0("'", text, "'"))
  if (!grepl("\"", text, fixed = TRUE)) return(paste0("\"", text, "\""))
  paste0("'", gsub("'", "\\'", text, fixed = TRUE), "'")
}
sv__sql_unprintable <- "(*UCP)(?! )[\\p{C}\\p{Z}]"


# ---- Migrations -----------------------------------------------------------------------------------------------------
#
# What every replica runs at its start, R and Python alike: one lock (GET_LOCK), one ledger (schema_version). The order,
# the words and the fields are those of sharedvol.MigrationCoordinator.
#
#   status <- sv_migrate(function() DBI::dbConnect(RMySQL::MySQL(), host = "db", dbname = "shop", user = "app",
#                                                  password = Sys.getenv("DB_PASSWORD")),
#                        "migrations", "shop_migration")
#
# Made for any DBI driver of MySQL and MariaDB, tested with RMySQL 0.10.25 on libmariadb 10.11. What to know of it:
# - MySQL 9 has only caching_sha2_password. libmariadb brings it as a plugin (Debian: in the package libmariadb3), and
#   was seen to log in over TCP with a password and without TLS: it asks the server for its RSA key. Somebody in between
#   could give a key of his own: on a network that is not yours, use TLS: `default.file` names an option file with a
#   group [client] and ssl-ca=/path/of/ca.pem in it.
# - It reads rows as they arrive, and says of an error among them nothing but a warning, or nothing; and of one in a
#   later result of a CALL only to who asks for that result. So all results are read, and asked for their errors.
# - It sends a statement as it is: %, ? and :name mean nothing. RMariaDB is told `immediate`, or it would prepare it.
# - It waits for an answer for ever. A limit, if any, belongs into `connect`, and must exceed the longest statement.
#
# What R does not do: it marks no progress. A file that stopped half-way in R is run from its first statement again by
# the next replica, R or Python, so write files that can be, or of one DDL statement each: MySQL commits each DDL by
# itself. Nor does it go on with a file that stopped half-way in Python: it refuses, and says who can.

# Apply what is pending, or wait until another replica has.
#   connect: a function that gives a new DBI connection with a default schema; it is closed here.
#   directory: where the *.sql files are.
#   lock_name: the lock's name on the server, the same literal for all replicas; in lower case: MariaDB tells a from A.
#   timeout: seconds to wait for another replica; Inf for ever.
#   expected_latest, expected_min_count, allow_empty: what the directory must hold.
#   renames: list("old.sql" = "new.sql"): the row follows the file, which is not run again.
#   log: called with a line of text now and then.
#   allow_unsafe: go on where the server's lock may not keep other replicas out (a cluster, a pooler).
# Returns the status: when it returns, nothing is pending. Else stops with an sv_migration_failed whose $status says
# truthfully what was applied before; it is one of these, too: sv_manifest_error, sv_database_error, sv_lock_timeout,
# sv_lock_error, sv_lock_lost, sv_ledger_error, sv_half_applied, sv_statement_failed. Let the process end then.
sv_migrate <- function(connect, directory, lock_name, timeout = 30, expected_latest = NULL, expected_min_count = NULL,
                       allow_empty = FALSE, renames = list(), log = message, allow_unsafe = FALSE) {
  stopifnot(
    is.function(connect), is.function(log),
    is.character(directory), length(directory) == 1L, !is.na(directory),
    is.character(lock_name), length(lock_name) == 1L, !is.na(lock_name), nzchar(lock_name),
    is.numeric(timeout), length(timeout) == 1L, !is.na(timeout), timeout >= 0
  )
  run <- new.env()
  run$options <- list(
    directory = directory, lock_name = sv__utf8(lock_name), timeout = timeout, expected_latest = expected_latest,
    expected_min_count = expected_min_count, allow_empty = allow_empty, renames = sv__last_names(renames),
    allow_unsafe = allow_unsafe
  )
  run$log <- log
  run$status <- sv__status()
  tryCatch(
    sv__run_migrations(run, connect),
    error = function(error) {
      told <- conditionMessage(error)
      applied <- run$status$filenames
      if (length(applied)) told <- sprintf("%s; applied by this run before: %s", told, paste(applied, collapse = ", "))
      sv__note(run, state = "failed", error = told, last_run = sv__now(), activity = NA_character_)
      classes <- setdiff(class(error), c("sv_error", "simpleError", "error", "condition"))
      sv__sql_stop(c(classes, "sv_migration_failed"), told, status = sv__told(run), parent = error)
    }
  )
  sv__told(run)
}

sv__run_migrations <- function(run, connect) {
  options <- run$options
  files <- sv__migration_files(options$directory)
  manifest <- sv__manifest(names(files), options)
  sv__note(run, total_migrations = length(files), manifest = manifest$manifest)
  if (!is.null(manifest$error)) sv__sql_stop("sv_manifest_error", manifest$error)

  session <- sv__session(connect)
  on.exit(sv__db_close(session$con), add = TRUE)  # which frees the lock, behind a ROLLBACK of what is open
  survey <- sv__look(run, session, names(files))
  if (length(survey$pending)) {
    sv__take_lock(run, session)
    sv__note(run, lock_acquired = TRUE, state = "migrating", activity = "looking again, with the lock")
    survey <- sv__look(run, session, names(files))  # what was seen before the lock may have changed since
    if (length(survey$pending)) {
      tryCatch(sv__apply_pending(run, session, files, survey), error = function(error) {
        # Say truthfully what is pending, if the database still answers. What is open must not count as done.
        try(sv__db_run(session$con, "ROLLBACK"), silent = TRUE)
        try(sv__db_run(session$con, "UNLOCK TABLES"), silent = TRUE)
        try(sv__look(run, session, names(files)), silent = TRUE)
        stop(error)
      })
      survey <- sv__look(run, session, names(files))
    } else {
      run$log("another replica has migrated the database while this one waited")
    }
    sv__release_lock(run, session)
  } else {
    sv__note(run, fast_path = TRUE)
  }
  if (length(survey$pending)) {
    sv__sql_stop("sv_ledger_error", paste("still pending after the run:", paste(survey$pending, collapse = ", ")))
  }
  sv__note(run, state = survey$state, last_run = sv__now(), activity = NA_character_)
}

# -- What is known: the status

# The fields of a status, in Python's order. What is not there is NA, which JSON has as null.
sv__status <- function() {
  list(
    pending_migrations = 0L, total_migrations = 0L, last_run = sv__now(), newly_applied = 0L, filenames = character(),
    fast_path = FALSE, lock_acquired = FALSE, manifest = NA, state = "unknown", pending = character(),
    ahead = character(), drifted = character(), half_applied = list(), lock_name = NA_character_, lock_holder = NA,
    waited = 0, activity = NA_character_
  )
}

sv__note <- function(run, ...) run$status[names(list(...))] <- list(...)

# The status as it is given away; with what sv_readiness() needs to look again.
sv__told <- function(run) structure(run$status, look = run$options)

sv__now <- function() format(Sys.time(), "%Y-%m-%dT%H:%M:%OS3+00:00", tz = "UTC")

# -- The files

# What is in the files, by their names, in the order of the names' bytes: list(name = list(path, bytes)). Read once, and
# all of them before anything is run: a file that changes later does not matter.
sv__migration_files <- function(directory) {
  if (!dir.exists(directory)) {
    sv__sql_stop("sv_manifest_error", sprintf("Migrations directory does not exist: %s", directory))
  }
  if (file.access(directory, 4L) != 0L || file.access(directory, 1L) != 0L) {  # list.files() would find it empty
    sv__sql_stop("sv_manifest_error", sprintf("cannot read the migrations directory %s", sv__sql_quoted(directory)))
  }
  found <- list.files(directory)  # without those that begin with a dot
  found <- found[grepl("[.]sql$", found, useBytes = TRUE)]
  names <- sv__utf8(found)
  for (one in which(!validUTF8(names))) {
    sv__sql_stop("sv_manifest_error", sprintf(
      "the name of '%s' is not UTF-8, and the ledger is: rename the file",
      file.path(directory, iconv(found[one], "UTF-8", "UTF-8", sub = "byte"))
    ))
  }
  ordered <- order(names, method = "radix")  # by bytes: any other way asks the locale
  files <- Map(function(path, name) {
    if (nchar(name, "chars") > 255L || grepl(sv__sql_unprintable, name, perl = TRUE)) {
      sv__sql_stop("sv_manifest_error", sprintf(
        "the ledger cannot hold the name %s: 255 printable characters at most; rename the file", sv__sql_quoted(name)
      ))
    }
    list(path = path, bytes = sv__read_migration(path))
  }, file.path(directory, found[ordered]), names[ordered])
  stats::setNames(files, names[ordered])
}

sv__read_migration <- function(path) {
  info <- file.info(path, extra_cols = FALSE)
  if (!is.na(info$isdir) && !sv__is_file(path)) { # to open a FIFO would wait until another process writes to it
    sv__sql_stop("sv_manifest_error", sprintf(
      "%s is not a regular file: move it elsewhere or give it another suffix", sv__sql_quoted(sv__utf8(path))
    ))
  }
  failed <- function(condition) {
    sv__sql_stop("sv_manifest_error", sprintf(
      "cannot read the migration %s: %s", sv__sql_quoted(sv__utf8(path)), conditionMessage(condition)
    ))
  }
  bytes <- tryCatch({
    input <- file(path, "rb")
    on.exit(close(input))
    parts <- list()
    while (length(part <- readBin(input, "raw", 1048576L))) parts[[length(parts) + 1L]] <- part
    as.raw(unlist(parts))
  }, error = failed, warning = failed)
  tryCatch(sv__check_utf8(bytes), sv_script_error = function(error) {
    sv__sql_stop("sv_manifest_error", sprintf("%s, %s", sv__sql_quoted(sv__utf8(path)), conditionMessage(error)))
  })
  bytes
}

# The statements of a file that was read: list(text, line).
sv__file_statements <- function(file, backslash_escapes) {
  tryCatch(sv__parse_sql(file$bytes, backslash_escapes), sv_script_error = function(error) {
    sv__sql_stop("sv_manifest_error", sprintf("%s, %s", sv__sql_quoted(sv__utf8(file$path)), conditionMessage(error)))
  })
}

# The names against what was expected of them: list(manifest, error); the words are an interface.
sv__manifest <- function(names, options) {
  count <- length(names)
  latest <- if (count) names[count] else NA_character_
  expected <- options$expected_latest
  least <- options$expected_min_count
  error <- if (!count && !options$allow_empty) {
    sprintf("No migration files found in: %s", options$directory)
  } else if (!is.null(expected) && !identical(latest, sv__utf8(expected))) {
    sprintf("Expected latest migration mismatch: expected %s, found %s", expected, if (count) latest else "None")
  } else if (!is.null(least) && count < least) {
    sprintf("Migration file count too low: found %d, expected at least %d", count, as.integer(least))
  }
  manifest <- list(
    ok = is.null(error), allowed_empty = options$allow_empty, count = count,
    expected_latest = if (is.null(expected)) NA_character_ else expected, latest = latest
  )
  list(manifest = manifest, error = error)
}

# What each old name is called after all renames: a database may have missed the release of one.
sv__last_names <- function(renames) {
  if (!length(renames)) return(character())
  given <- stats::setNames(sv__utf8(as.character(unlist(renames))), sv__utf8(names(renames)))
  last <- given
  for (old in names(given)) {
    seen <- old
    while (last[[old]] %in% names(given)) {
      if (last[[old]] %in% seen) stop(sprintf("renames lead from '%s' back to '%s'", old, last[[old]]))
      seen <- c(seen, last[[old]])
      last[[old]] <- given[[last[[old]]]]
    }
  }
  last
}

# -- The connection

# A session to look and to work on: list(con, home, id, mariadb, version, backslash_escapes). One connection does it
# all: the lock belongs to its session, and is gone when that ends; so it is never replaced by another.
sv__session <- function(connect) {
  con <- tryCatch(connect(), error = function(error) {
    sv__sql_stop("sv_database_error", paste("cannot connect to the database:", trimws(conditionMessage(error))),
                code = NA_integer_, lost = TRUE)
  })
  if (!inherits(con, "DBIConnection")) stop("connect must give a new DBI connection, not a pool or an address")
  tryCatch({
    # Within a transaction the look with the lock would show what was there before the lock.
    sv__db_run(con, "SET autocommit = 1")
    sv__db_run(con, "SET NAMES utf8mb4")
    about <- sv__db_rows(con, paste(
      "SELECT CONVERT(DATABASE() USING utf8mb4), CAST(CONNECTION_ID() AS CHAR),",
      "VERSION(), @@version_comment, @@SESSION.sql_mode"
    ))
    if (is.na(about[[1L]])) {
      sv__sql_stop("sv_ledger_error", "the connection has no schema: name the database in connect")
    }
    list(
      con = con, home = paste0("`", gsub("`", "``", about[[1L]], fixed = TRUE), "`"), id = about[[2L]],
      mariadb = grepl("mariadb", paste(about[[3L]], about[[4L]]), ignore.case = TRUE), version = about[[3L]],
      backslash_escapes = !grepl("NO_BACKSLASH_ESCAPES", about[[5L]], fixed = TRUE)
    )
  }, error = function(error) {
    sv__db_close(con)
    stop(error)
  })
}

# Run one statement, read all of its results; how many rows the last one made or changed.
sv__db_run <- function(con, text) {
  changed <- NA_real_
  sv__db_told(con, {
    result <- sv__db_send(con, text)
    repeat {
      changed <- suppressWarnings(tryCatch(DBI::dbGetRowsAffected(result), error = function(error) NA_real_))
      suppressWarnings(DBI::dbClearResult(result))  # which reads the rows that are left
      sv__db_refuse_silence(con)
      if (!inherits(con, "MySQLConnection") || !RMySQL::dbMoreResults(con)) break
      result <- RMySQL::dbNextResult(con)
    }
  })
  invisible(changed)
}

# The rows that a question gives, as a list of columns. Text is UTF-8.
sv__db_rows <- function(con, text) {
  rows <- sv__db_told(con, {
    result <- sv__db_send(con, text)
    # Of numbers that might not fit an integer RMySQL warns each time.
    rows <- suppressWarnings(tryCatch(DBI::dbFetch(result, n = -1L), finally = DBI::dbClearResult(result)))
    sv__db_refuse_silence(con)
    rows
  })
  lapply(unname(as.list(rows)), function(column) {
    if (is.character(column)) sv__utf8(column) else as.numeric(column)  # RMariaDB gives integer64, which is no index
  })
}

sv__db_send <- function(con, text) {
  if (inherits(con, "MariaDBConnection")) {
    DBI::dbSendQuery(con, text, immediate = TRUE)  # else it is prepared: ? would mean something, and some cannot be
  } else {
    DBI::dbSendQuery(con, text)
  }
}

# RMySQL tells of an error among the rows only if it is asked.
sv__db_refuse_silence <- function(con) {
  told <- sv__db_exception(con)
  if (!is.null(told) && told$errorNum != 0) stop(told$errorMsg)
}

sv__db_exception <- function(con) {
  told <- tryCatch(suppressWarnings(DBI::dbGetException(con)), error = function(error) NULL)
  if (is.null(told$errorNum) || is.na(told$errorNum)) NULL else told
}

# Errors of the driver as sv_database_error: $code is the server's number or NA, $lost whether the connection is gone.
sv__db_told <- function(con, work) {
  tryCatch(work, error = function(error) {
    told <- sv__db_exception(con)
    words <- conditionMessage(error)
    code <- suppressWarnings(as.integer(sub(".*\\[([0-9]+)\\]\\s*$", "\\1", words)))  # RMariaDB ends so
    if (!is.null(told) && told$errorNum != 0) {
      words <- told$errorMsg  # RMySQL's own are less: "error in getting next result set"
      code <- as.integer(told$errorNum)
    }
    alive <- tryCatch({
      result <- DBI::dbSendQuery(con, "SELECT 1")
      DBI::dbClearResult(result)
      TRUE
    }, error = function(error) FALSE)
    number <- if (is.na(code)) "" else sprintf(" (error %d)", code)
    sv__sql_stop("sv_database_error", paste0(sv__utf8(words), number), code = code, lost = !alive)
  })
}

sv__db_close <- function(con) {
  try(suppressWarnings(for (result in DBI::dbListResults(con)) DBI::dbClearResult(result)), silent = TRUE)
  try(suppressWarnings(DBI::dbDisconnect(con)), silent = TRUE)
}

# A string in SQL: without quotes, so that it means the same under each sql_mode; a literal, so that it takes on the
# collation of what it is compared with.
sv__sql_text <- function(text) {
  if (!nzchar(text)) return("_utf8mb4 ''")
  paste0("_utf8mb4 0x", paste(as.character(charToRaw(text)), collapse = ""))
}

# -- The lock

# Take the lock, waiting for it on the server. GET_LOCK has three answers: 1 it is yours, 0 it is not, NULL it went
# wrong. In slices: MariaDB answers NULL at once to a wait for ever, and who waits says for whom.
sv__take_lock <- function(run, session) {
  con <- session$con
  options <- run$options
  sv__check_lock_name(session, options$lock_name)
  sv__note(run, lock_name = options$lock_name)
  if (!options$allow_unsafe) sv__refuse_cluster(session, options$lock_name)
  begun <- proc.time()[["elapsed"]]
  waited <- slice <- 0  # the sum of what the server waited: a clock that is set does not matter
  repeat {
    granted_to <- sv__ask_for_lock(session, options$lock_name, slice)
    if (!is.na(granted_to)) break
    waited <- waited + slice
    left <- options$timeout - waited
    holder <- sv__lock_holder(con, options$lock_name)
    sv__note(run, lock_holder = sv__holder_fields(holder), waited = round(waited, 3))
    if (left <= 0) {
      who <- if (is.null(holder)) "another process, thread or task" else sv__holder_words(holder)
      tried <- if (options$timeout > 0) {
        sprintf("gave up after %g s; allow a longer timeout, or look for a holder that hangs", options$timeout)
      } else {
        "not waiting; try again later, or set a timeout"
      }
      sv__sql_stop(
        c("sv_lock_timeout", "sv_lock_error"),
        sprintf("lock %s is held by %s: %s", sv__sql_quoted(options$lock_name), who, tried),
        holder = holder
      )
    }
    if (slice >= 1 || slice == 0) {
      who <- if (is.null(holder)) "held by another process" else paste("held by", sv__holder_words(holder))
      run$log(sprintf("waiting for lock %s, %s, for %.0f s so far", sv__sql_quoted(options$lock_name), who, waited))
      sv__note(run, state = "waiting",
              activity = sprintf("waiting for lock %s, %s", sv__sql_quoted(options$lock_name), who))
    }
    # Short at first, so that the first word of a holder is soon followed by a better one; a longer one keeps the
    # place in the server's queue longer.
    slice <- min(left, if (slice == 0) 1 else 5)
    if (!session$mariadb) {  # MySQL rounds fractions
      if (slice < 1) {
        Sys.sleep(min(slice, 0.05))
        waited <- waited + min(slice, 0.05) - 0.01
        slice <- 0.01
      } else {
        slice <- floor(slice)
      }
    }
  }
  sv__note(run, lock_holder = NA, waited = round(proc.time()[["elapsed"]] - begun, 3))
  now <- sv__db_rows(con, sprintf(
    "SELECT CAST(IS_USED_LOCK(%s) AS CHAR), CAST(CONNECTION_ID() AS CHAR)", sv__sql_text(options$lock_name)
  ))
  if (!options$allow_unsafe && !identical(c(session$id, granted_to, now[[1L]]), rep(now[[2L]], 3L))) {
    sv__sql_stop("sv_lock_error", sprintf(paste(
      "lock %s would not be kept: something between us and the server shares connections (granted to connection %s,",
      "first on %s, now on %s); connect to the server itself, or say allow_unsafe = TRUE; connection %s may still have",
      "it"
    ), sv__sql_quoted(options$lock_name), granted_to, session$id, now[[2L]], granted_to))
  }
}

# Ask once; the connection that got the lock, or NA.
sv__ask_for_lock <- function(session, lock_name, seconds) {
  # Else MariaDB's limit for statements would end the wait, with the answer NULL.
  unlimited <- if (session$mariadb) "SET STATEMENT max_statement_time = 0 FOR " else ""
  sql <- sprintf("%sSELECT CAST(GET_LOCK(%s, %.3f) AS CHAR), CAST(CONNECTION_ID() AS CHAR)", unlimited,
                 sv__sql_text(lock_name), seconds)
  answer <- tryCatch(sv__db_rows(session$con, sql), sv_database_error = function(error) {
    if (error$code %in% c(1213L, 3058L)) {  # ER_LOCK_DEADLOCK, ER_USER_LOCK_DEADLOCK
      sv__sql_stop("sv_lock_error", sprintf("waiting for lock %s would never end: %s", sv__sql_quoted(lock_name),
                                           conditionMessage(error)))
    }
    if (error$code %in% 1317L) {  # ER_QUERY_INTERRUPTED
      sv__sql_stop("sv_lock_error", sprintf("lock %s: the wait was killed: %s", sv__sql_quoted(lock_name),
                                           conditionMessage(error)))
    }
    if (error$code %in% 3024L) return(list("0", session$id))  # ER_QUERY_TIMEOUT, by MySQL's max_execution_time
    stop(error)
  })
  if (is.na(answer[[1L]])) {
    sv__sql_stop(c("sv_lock_error", "sv_database_error"), sprintf(
      "lock %s: the server answered NULL: the wait was killed, or it has no memory left", sv__sql_quoted(lock_name)
    ), code = NA_integer_, lost = FALSE)
  }
  if (answer[[1L]] == "1") answer[[2L]] else NA_character_
}

sv__release_lock <- function(run, session) {
  sql <- sprintf("SELECT CAST(RELEASE_LOCK(%s) AS CHAR)", sv__sql_text(run$options$lock_name))
  freed <- tryCatch(sv__db_rows(session$con, sql)[[1L]], sv_database_error = function(error) "0")
  # What was done under it is not in doubt: each row of the ledger was written only with the lock.
  if (!identical(freed, "1")) {
    run$log(sprintf("lock %s was lost before it was released", sv__sql_quoted(run$options$lock_name)))
  }
}

# Stop unless the lock is still ours.
sv__check_lock <- function(run, session, what) {
  sql <- sprintf("SELECT COALESCE(IS_USED_LOCK(%s) = CONNECTION_ID(), 0)", sv__sql_text(run$options$lock_name))
  if (sv__db_rows(session$con, sql)[[1L]] != 1) sv__lock_lost(run, what)
}

sv__lock_lost <- function(run, what) {
  sv__sql_stop(c("sv_lock_lost", "sv_lock_error"), sprintf(paste(
    "the lock %s was lost before %s: the migration itself, or something else, released it, and another replica may",
    "have it"
  ), sv__sql_quoted(run$options$lock_name), what))
}

# Who has the lock: list(connection_id, user, host, seconds, doing); NULL if nobody has.
sv__lock_holder <- function(con, lock_name) {
  lock <- sv__sql_text(lock_name)
  found <- tryCatch(sv__db_rows(con, sprintf(paste(
    "SELECT CAST(ID AS CHAR), CONVERT(USER USING utf8mb4), CONVERT(HOST USING utf8mb4),",
    "CAST(COALESCE(TIME, 0) AS CHAR), CONVERT(COALESCE(INFO, COMMAND) USING utf8mb4)",
    "FROM information_schema.PROCESSLIST WHERE ID = IS_USED_LOCK(%s)"
  ), lock)), sv_database_error = function(error) list(character()))  # who may not look still learns the number
  if (length(found[[1L]])) {
    return(list(connection_id = as.numeric(found[[1L]]), user = found[[2L]], host = found[[3L]],
                seconds = as.numeric(found[[4L]]), doing = found[[5L]]))
  }
  number <- sv__db_rows(con, sprintf("SELECT CAST(IS_USED_LOCK(%s) AS CHAR)", lock))[[1L]]
  if (is.na(number)) return(NULL)
  list(connection_id = as.numeric(number), user = NA_character_, host = NA_character_, seconds = NA_real_,
       doing = NA_character_)
}

# For a status: without the statement, which may hold secrets.
sv__holder_fields <- function(holder) if (is.null(holder)) NA else holder[names(holder) != "doing"]

sv__holder_words <- function(holder) {
  if (is.na(holder$user)) return(sprintf("connection %.0f", holder$connection_id))
  # One word of what it does: what follows may be a value.
  word <- toupper(sub("^([A-Za-z]+)?.*", "\\1", gsub("[^ -~]", " ", holder$doing, useBytes = TRUE)))
  doing <- if (nzchar(word)) sprintf(", %s for %.0f s", word, holder$seconds) else ""
  sprintf("connection %.0f (%s from %s%s)", holder$connection_id, holder$user, holder$host, doing)
}

sv__check_lock_name <- function(session, lock_name) {
  characters <- nchar(lock_name, "chars")
  too_long <- if (session$mariadb) nchar(lock_name, "bytes") > 192L else characters > 64L
  if (too_long) {
    sv__sql_stop("sv_lock_error", sprintf("lock name %s is longer than the %s that %s takes: shorten it",
                                         sv__sql_quoted(lock_name),
                                         if (session$mariadb) "192 bytes" else "64 characters", session$version))
  }
  if (!session$mariadb && any(utf8ToInt(lock_name) > 0xffffL)) {
    sv__sql_stop("sv_lock_error", sprintf("lock name %s has characters beyond U+FFFF, which %s takes in no name",
                                         sv__sql_quoted(lock_name), session$version))
  }
}

# The nodes of a cluster do not share named locks.
sv__refuse_cluster <- function(session, lock_name) {
  rows <- sv__db_rows(session$con, paste(
    "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('wsrep_on', 'wsrep_cluster_name', 'group_replication_group_name')"
  ))
  known <- stats::setNames(as.list(rows[[2L]]), tolower(rows[[1L]]))
  cluster <- if (isTRUE(toupper(known$wsrep_on) %in% c("ON", "1"))) {
    sprintf("the server is a node of the Galera cluster %s", sv__sql_quoted(known$wsrep_cluster_name))
  } else if (isTRUE(nzchar(known$group_replication_group_name))) {
    sprintf("the server is a member of the replication group %s", sv__sql_quoted(known$group_replication_group_name))
  }
  if (is.null(cluster)) return(invisible())
  sv__sql_stop("sv_lock_error", sprintf(paste(
    "lock %s would not exclude others: %s, whose nodes do not share locks; let all replicas use one node and say",
    "allow_unsafe = TRUE, or use another lock"
  ), sv__sql_quoted(lock_name), cluster))
}

# -- The ledger

# What is pending: list(pending, ahead, half, state, records). Changes nothing and creates nothing: an account that may
# only read comes this far.
sv__look <- function(run, session, names) {
  records <- sv__read_ledger(session)
  progress <- sv__read_progress(session)
  renames <- run$options$renames
  pending <- setdiff(names, records$applied)
  due <- sv__due_renames(renames, names, c(records$all, progress$name))
  if (length(pending) && is.null(progress)) {
    sv__sql_stop("sv_ledger_error", paste(
      "this account may not read the table sharedvol_migration, which tells how far the pending migrations got: grant",
      "SELECT on it"
    ))
  }
  begun <- which(!progress$applied & progress$started > 0)
  known_as <- ifelse(progress$name[begun] %in% names(due), due[progress$name[begun]], progress$name[begun])
  begun <- begun[known_as %in% pending]
  half <- lapply(begun, function(one) {
    list(
      name = progress$name[one], statements = progress$statements[one], done = progress$done[one],
      "next" = progress$done[one] + 1L, line = 0L, words = "",
      error = progress$error[one],
      obstacle = "a Python replica began it, and R does not go on in the middle of a file", can_resume = FALSE
    )
  })
  renamed <- names(renames)[renames %in% names]
  functions <- progress$name[progress$checksum == ""]  # applied by Python, and no files
  ahead <- sort(setdiff(records$applied, c(names, renamed, functions)), method = "radix")
  state <- if (length(pending)) "pending" else if (length(ahead)) "ahead" else "up_to_date"
  sv__note(run, pending_migrations = length(pending), total_migrations = length(names), pending = pending,
           ahead = ahead, half_applied = half)
  list(pending = pending, half = half, state = state, due = due, records = records, progress = progress)
}

# The ledger: list(exists, applied, all). One that cannot be read is never taken for "nothing applied".
sv__read_ledger <- function(session) {
  table <- paste0(session$home, ".schema_version")  # in full: a migration may have said USE
  tryCatch({
    rows <- sv__db_rows(session$con, sprintf(
      "SELECT CONVERT(filename USING utf8mb4), COALESCE(success <> 0, 0) FROM %s", table
    ))
    names <- as.character(rows[[1L]])
    list(exists = TRUE, applied = names[rows[[2L]] == 1], all = names)
  }, sv_database_error = function(error) {
    if (error$code %in% 1146L) return(list(exists = FALSE, applied = character(), all = character()))
    sv__unreadable(table, error)
  })
}

# Python's own table: how far each file got there. NULL where this account may not read it.
sv__read_progress <- function(session) {
  table <- paste0(session$home, ".sharedvol_migration")
  columns <- c("name", "checksum", "applied", "statements", "started", "done", "error_at", "error", "digests")
  rows <- tryCatch(sv__db_rows(session$con, sprintf(paste(
    "SELECT CONVERT(filename USING utf8mb4), CONVERT(checksum USING utf8mb4), applied, statements, started, done,",
    "error_at, CONVERT(error USING utf8mb4), CONVERT(digests USING utf8mb4) FROM %s"
  ), table)), sv_database_error = function(error) {
    if (error$code %in% 1146L) return(list())  # no Python replica was ever here
    if (error$code %in% c(1142L, 1143L)) return(NULL)
    sv__unreadable(table, error)
  })
  if (is.null(rows)) return(NULL)
  if (!length(rows) || !length(rows[[1L]])) rows <- rep(list(character()), length(columns))
  progress <- stats::setNames(rows, columns)
  for (column in c("statements", "started", "done", "error_at")) progress[[column]] <- as.integer(progress[[column]])
  progress$applied <- as.integer(progress$applied) == 1L
  progress
}

sv__unreadable <- function(table, error) {
  if (isTRUE(error$lost)) stop(error)
  sv__sql_stop("sv_ledger_error", sprintf(
    "cannot read the table %s, so what has been applied is not known and nothing is run: %s", table,
    conditionMessage(error)
  ))
}

# The renames to be made now: old names that are recorded, with the new names of their files.
sv__due_renames <- function(renames, names, recorded) {
  renames[names(renames) %in% recorded & renames %in% names & !(names(renames) %in% names)]
}

sv__create_ledger <- function(session) {
  sql <- sprintf(paste(
    "CREATE TABLE IF NOT EXISTS %s.schema_version (filename VARCHAR(255) NOT NULL PRIMARY KEY,",
    "applied_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, success BOOLEAN DEFAULT TRUE)"
  ), session$home)
  tryCatch(sv__db_run(session$con, sql), sv_database_error = function(error) {
    if (error$lost) stop(error)
    sv__sql_stop("sv_ledger_error", sprintf(paste(
      "cannot make the table that records migrations: %s; grant CREATE to the account, or let another one run: %s"
    ), conditionMessage(error), sql))
  })
}

# Refuse names that the ledger's column cannot hold, or cannot tell apart: they would be run, and not be recorded.
sv__refuse_clashes <- function(session, names) {
  names <- sort(unique(names), method = "radix")
  column <- sv__db_rows(session$con, sprintf("SHOW FULL COLUMNS FROM %s.schema_version WHERE Field = 'filename'",
                                            session$home))
  collation <- if (length(column) && length(column[[3L]])) column[[3L]] else NA
  if (!length(names) || is.na(collation) || collation == "binary") return(invisible())
  charset <- sub("_.*", "", collation)
  literals <- vapply(names, sv__sql_text, "")
  if (charset != "utf8mb4") {
    table <- paste("SELECT", literals, "AS name,", seq_along(names), "AS number", collapse = " UNION ALL ")
    unfit <- sv__db_rows(session$con, sprintf(paste(
      "SELECT number FROM (%s) AS names",
      "WHERE HEX(CONVERT(CONVERT(name USING %s) USING utf8mb4)) <> HEX(CONVERT(name USING utf8mb4))"
    ), table, charset))[[1L]]
    for (one in unfit) {
      sv__sql_stop("sv_ledger_error", sprintf(paste(
        "the ledger cannot hold the name %s, whose characters its column does not have: rename the file, or give the",
        "column the character set utf8mb4"
      ), sv__sql_quoted(names[one])))
    }
  }
  table <- paste0("SELECT CONVERT(", literals, " USING ", charset, ") COLLATE ", collation, " AS name, ",
                  seq_along(names), " AS number", collapse = " UNION ALL ")
  pairs <- sv__db_rows(session$con, sprintf(
    "SELECT MIN(number), MAX(number) FROM (%s) AS names GROUP BY name HAVING COUNT(*) > 1", table
  ))
  if (length(pairs[[1L]])) {
    sv__sql_stop("sv_ledger_error", sprintf(paste(
      "the ledger cannot tell %s from %s: its column compares without case or accents, so the second would be run and",
      "not be recorded; rename one of them, or say so in renames"
    ), sv__sql_quoted(names[pairs[[1L]][1L]]), sv__sql_quoted(names[pairs[[2L]][1L]])))
  }
}

# Write to the ledger, in one statement with the question for the lock. `sql` ends where a condition may follow.
sv__write_ledger <- function(run, session, sql, what) {
  fenced <- sprintf("%s IS_USED_LOCK(%s) = CONNECTION_ID()", sql, sv__sql_text(run$options$lock_name))
  changed <- tryCatch(sv__db_run(session$con, fenced), sv_database_error = function(error) {
    if (error$lost) {
      error$message <- sprintf("the connection was lost while %s: the next start will see whether it was: %s", what,
                               conditionMessage(error))
      stop(error)
    }
    sv__sql_stop("sv_ledger_error", paste("cannot write the ledger:", conditionMessage(error)))
  })
  if (!isTRUE(changed >= 1)) sv__lock_lost(run, sprintf("the end of: %s", what))
}

# -- Applying

sv__apply_pending <- function(run, session, files, survey) {
  sv__refuse_half(survey$half)
  # All of them, before anything is changed: a mistake in the last one must not leave half a release.
  scripts <- lapply(files[survey$pending], sv__file_statements, session$backslash_escapes)
  if (!survey$records$exists) sv__create_ledger(session)  # who may not create can still migrate what it may
  sv__refuse_clashes(session, setdiff(c(names(files), survey$records$all), names(survey$due)))
  for (old in names(survey$due)) sv__rename(run, session, old, survey$due[[old]])
  survey <- sv__look(run, session, names(files))
  sv__refuse_other_name(session, survey, files, scripts)
  settings <- sv__session_settings(session)
  for (name in survey$pending) {
    number <- match(name, survey$pending)
    sv__note(run, activity = sprintf("migration %d of %d: %s", number, length(survey$pending), name))
    # Asked here and not between the statements, where ROW_COUNT() or LAST_INSERT_ID() would see the question.
    sv__check_lock(run, session, sprintf("%s could begin", sv__sql_quoted(name)))
    begun <- proc.time()[["elapsed"]]
    sv__run_file(session, name, scripts[[name]])
    sv__settle(session, settings, scripts[[name]]$text)
    sv__record(run, session, name, name %in% survey$records$all)
    sv__note(run, newly_applied = run$status$newly_applied + 1L, filenames = c(run$status$filenames, name),
            pending = setdiff(run$status$pending, name), pending_migrations = run$status$pending_migrations - 1L)
    run$log(sprintf("migration %s applied: %d statements in %.3f s", name, length(scripts[[name]]$text),
                    proc.time()[["elapsed"]] - begun))
  }
}

# A file that a Python replica began and did not end: run from the start, its first statements would be done twice.
sv__refuse_half <- function(half) {
  if (!length(half)) return(invisible())
  one <- half[[1L]]
  error <- if (is.na(one$error)) "" else sprintf("; it failed with: %s", one$error)
  sv__sql_stop("sv_half_applied", sprintf(paste0(
    "half-applied migration %s: %d of %d statements are done%s; %s. Start a Python replica, or run `sharedvol migrate ",
    "run` with the same --lock-name: it goes on behind them, or says what to look at. Or undo by hand what it did and ",
    "delete its row from sharedvol_migration: then it is run from its start"
  ), one$name, one$done, one$statements, error, one$obstacle), half_applied = half)
}

# A file whose beginning a Python replica ran already, under a name that is no more.
sv__refuse_other_name <- function(session, survey, files, scripts) {
  progress <- survey$progress
  begun <- ifelse(progress$error_at > 0L, progress$done, pmax(progress$done, progress$started))
  gone <- which(!progress$applied & begun > 0L & !(progress$name %in% c(survey$records$all, names(files))))
  for (one in gone) {
    first <- seq_len(begun[one])
    before <- strsplit(progress$digests[one], " ", fixed = TRUE)[[1L]][first]
    for (name in setdiff(survey$pending, progress$name)) {
      texts <- scripts[[name]]$text[first]
      if (anyNA(texts) || all(grepl("^(?i)(USE|SET(?!\\s+(GLOBAL|PERSIST|PASSWORD)))\\b", texts, perl = TRUE))) next
      now <- sv__db_rows(session$con, paste(
        "SELECT", paste0("LEFT(SHA2(", vapply(texts, sv__sql_text, ""), ", 256), 20)", collapse = ", ")
      ))
      if (identical(unlist(now), before)) {
        sv__sql_stop("sv_half_applied", sprintf(paste(
          "%s begins as %s does, which stopped behind %d statements: if it is the same file, say so in renames; if",
          "what it did was undone, delete its row from sharedvol_migration"
        ), sv__sql_quoted(name), sv__sql_quoted(progress$name[one]), progress$done[one]))
      }
    }
  }
}

sv__rename <- function(run, session, old, new) {
  records <- sv__read_ledger(session)  # anew: two old names may have come to one new one
  if (!(old %in% records$all)) return(invisible())
  table <- paste0(session$home, ".schema_version")
  sql <- if (new %in% records$all) {
    sprintf("DELETE FROM %s WHERE filename = %s AND", table, sv__sql_text(old))
  } else {
    sprintf("UPDATE %s SET filename = %s WHERE filename = %s AND", table, sv__sql_text(new), sv__sql_text(old))
  }
  sv__write_ledger(run, session, sql, sprintf("renaming %s to %s", sv__sql_quoted(old), sv__sql_quoted(new)))
  run$log(sprintf("migration %s is now %s", old, new))
}

# The row says that the file ended: only success is ever written.
sv__record <- function(run, session, name, has_row) {
  table <- paste0(session$home, ".schema_version")
  sql <- if (has_row) {  # with success = FALSE
    sprintf("UPDATE %s SET success = TRUE, applied_at = CURRENT_TIMESTAMP WHERE filename = %s AND", table,
            sv__sql_text(name))
  } else {
    sprintf("INSERT INTO %s (filename, success) SELECT %s, TRUE FROM DUAL WHERE", table, sv__sql_text(name))
  }
  sv__write_ledger(run, session, sql, sprintf("recording %s", sv__sql_quoted(name)))
}

sv__run_file <- function(session, name, script) {
  total <- length(script$text)
  for (number in seq_len(total)) {
    tryCatch(sv__db_run(session$con, script$text[number]), sv_database_error = function(error) {
      words <- regmatches(script$text[number], regexpr("^[A-Za-z_]+(\\s+`?[A-Za-z_][A-Za-z0-9_$]*`?){0,2}",
                                                       script$text[number]))  # no more: what follows may be a value
      then <- if (error$lost) {
        "the connection is gone, and the lock with it; whether the statement was done is not known"
      } else {
        "what it did before it failed may remain"
      }
      before <- if (number > 1L) sprintf("; the %d before it are done", number - 1L) else ""
      sv__sql_stop(c("sv_statement_failed", "sv_database_error"), sprintf(
        paste0("%s: statement %d of %d (line %d, %s) failed: %s; %s%s; look at the database: the next start runs the ",
               "file from its first statement again"),
        name, number, total, script$line[number], if (length(words)) words else "statement", conditionMessage(error),
        then, before
      ), code = error$code, lost = error$lost, migration = name, statement = number)
    })
  }
}

# End what the file left open and undo its settings, before the ledger and the next file.
sv__settle <- function(session, settings, texts) {
  con <- session$con
  sv__db_run(con, "UNLOCK TABLES")
  sv__db_run(con, "COMMIT")
  sv__db_run(con, paste("USE", session$home))
  sv__db_run(con, "SET NAMES utf8mb4")
  used <- unique(unlist(regmatches(texts, gregexpr("(?<![@\\w`'\"])@`?[\\w$.]{1,64}", texts, perl = TRUE))))
  tidy <- if (length(used)) paste("SET", paste0("@`", sub("^@`?", "", used), "` = NULL", collapse = ", "))
  if (any(grepl("(?i)\\b(SET|CALL|EXECUTE)\\b|;", texts, perl = TRUE))) {  # nothing else sets anything
    tidy <- c(tidy, "SET SESSION timestamp = DEFAULT")
    now <- sv__session_settings(session)
    for (name in names(now)[names(now) %in% names(settings)]) {
      before <- settings[[name]]
      if (identical(before, now[[name]])) next
      number <- grepl("^-?[0-9]+([.][0-9]+)?$", before)
      tidy <- c(tidy, sprintf("SET SESSION %s = %s", name, if (number) before else sv__sql_text(before)))
    }
  }
  for (sql in tidy) {
    tryCatch(sv__db_run(con, sql), sv_database_error = function(error) {
      if (error$lost) stop(error)  # else it is not this account's to set: then the file did not set it either
    })
  }
}

sv__session_settings <- function(session) {
  rows <- sv__db_rows(session$con, "SHOW SESSION VARIABLES")
  volatile <- c("error_count", "identity", "in_transaction", "insert_id", "last_gtid", "last_insert_id", "rand_seed1",
                "rand_seed2", "timestamp", "warning_count")
  settings <- stats::setNames(as.list(rows[[2L]]), rows[[1L]])
  settings[setdiff(names(settings), volatile)]
}


# ---- Readiness ------------------------------------------------------------------------------------------------------
#
# What /health/ready answers, as sharedvol.health does: the same fields with the same words. For plumber:
#
#   #* @get /health/ready
#   #* @serializer unboxedJSON
#   function(res) {
#     report <- sv_readiness(status, connect)
#     res$status <- report$code
#     report$body
#   }
#
# A run that ended well is enough: replicas share the database, and if each was not ready while it does not answer, no
# replica would be left. With database = "always" it queries the database each time: let a load balancer ask every few
# seconds, and let `connect` give up soon, or plumber answers nothing while the server is silent. RMySQL does by the
# option file in `default.file`, with connect-timeout=2 and read-timeout=2 in its group [client]; setTimeLimit() ends no
# wait of its. The answer holds error messages of the database: keep the path inside.

# Whether the replica may serve: list(code = 200 or 503, body = list(...)).
#   status: what sv_migrate() returned, or the $status of the condition it stopped with.
#   connect: as for sv_migrate().
#   database: "start" queries the database only while the status shows something pending; "always" for each check.
# 200 when nothing is pending and the manifest is as expected; else 503 with the reason database_unavailable,
# migration_error or migrations_pending. Never stops for what it finds.
sv_readiness <- function(status, connect, database = c("start", "always")) {
  options <- attr(status, "look")
  if (is.null(options)) stop("status must come from sv_migrate(): what it returned, or its condition's $status")
  run <- new.env()
  run$options <- options
  run$status <- sv__status()
  names <- tryCatch(names(sv__migration_files(options$directory)), sv_manifest_error = identity)
  if (inherits(names, "condition")) {
    return(sv__report(status, "migration_error", "unknown", conditionMessage(names)))
  }
  manifest <- sv__manifest(names, options)
  sv__note(run, manifest = manifest$manifest)
  if (!is.null(manifest$error)) {
    status$manifest <- manifest$manifest
    return(sv__report(status, "migration_error", "unknown", manifest$error))
  }
  settled <- isTRUE(status$state %in% c("up_to_date", "ahead")) && identical(status$manifest, manifest$manifest)
  if (identical(match.arg(database), "start") && settled) return(sv__report(status, NULL, "unknown"))
  found <- tryCatch({
    session <- sv__session(connect)
    on.exit(sv__db_close(session$con))
    survey <- sv__look(run, session, names)
    holder <- sv__lock_holder(session$con, options$lock_name)
    sv__note(run, state = survey$state, lock_name = options$lock_name, lock_holder = sv__holder_fields(holder))
    run$status
  }, error = identity)
  if (inherits(found, "sv_database_error")) {
    return(sv__report(status, "database_unavailable", "unavailable", conditionMessage(found)))
  }
  if (inherits(found, "condition")) {
    return(sv__report(status, "migration_error", "connected", conditionMessage(found)))
  }
  if (identical(status$state, "failed")) return(sv__report(status, "migration_error", "connected"))
  if (length(found$pending)) return(sv__report(found, "migrations_pending", "connected"))
  # What this replica's own run did, if that is still how things are; and who has the lock now.
  if (!identical(status$state, found$state)) return(sv__report(found, NULL, "connected"))
  status[c("lock_name", "lock_holder")] <- found[c("lock_name", "lock_holder")]
  sv__report(status, NULL, "connected")
}

# An answer whose JSON is Python's: vectors that are arrays become lists, so that one name stays an array.
sv__report <- function(status, reason, database, error = NULL) {
  head <- list(status = if (is.null(reason)) "ready" else "not_ready")
  if (!is.null(reason)) head$reason <- reason
  fields <- unclass(status)
  attr(fields, "look") <- NULL
  for (name in c("filenames", "pending", "ahead", "drifted")) fields[[name]] <- as.list(fields[[name]])
  if (!is.null(error)) fields$error <- error
  list(
    code = if (is.null(reason)) 200L else 503L,
    body = c(head, list(database = database, timestamp = sv__now()), fields)
  )
}

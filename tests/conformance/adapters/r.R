# The conformance adapter of R. One request a line in, one answer a line out. See ../README.md.
# SHAREDVOL_R may name another sharedvol.R than that of this repository.

this <- sub("^--file=", "", grep("^--file=", commandArgs(FALSE), value = TRUE))
source(Sys.getenv("SHAREDVOL_R", file.path(dirname(this), "../../../docs/r/sharedvol.R")))

input <- file("stdin", open = "rb")
locks <- list()
warned <- 0 # how many warnings of a network file system

encode <- function(word) {
  bytes <- charToRaw(as.character(word)) # the locale is UTF-8, and a name may hold bytes that are not
  if (length(bytes)) paste0("%", as.character(bytes), collapse = "") else "%"
}

decode <- function(word) {
  if (word == "%") return("")
  text <- utils::URLdecode(word)
  if (validUTF8(text)) Encoding(text) <- "UTF-8"
  text
}

say <- function(word, ...) {
  cat(paste(c(word, vapply(list(...), encode, "")), collapse = " "), "\n", sep = "", file = stdout())
  flush(stdout())
}

hear <- function() {
  line <- readLines(input, 1)
  if (!length(line)) quit("no")
  vapply(strsplit(line, " ", fixed = TRUE)[[1]], decode, "", USE.NAMES = FALSE)
}

blank <- function(value) {
  if (inherits(value, "Date")) {
    day <- as.POSIXlt(value) # "%Y" gives the year 999 three digits
    return(sprintf("%04d-%02d-%02d", day$year + 1900L, day$mon + 1L, day$mday))
  }
  if (is.null(value)) "" else format(value, scientific = FALSE)
}

number <- function(value) sprintf("%.0f", value)

verbs <- list(
  hello = function() {
    if (!requireNamespace("filelock", quietly = TRUE)) return(say("missing", "R has no package filelock"))
    say("ok", 1, "r", "fcntl", "lock", "shared", "timeout", "queue", "fork", "network", "fence", "names", "publish",
        "replace", "mark", "purge", "sql")
  },
  reset = function() {
    for (lock in locks) sv_unlock(lock)
    locks <<- list()
    say("ok")
  },
  lock = function(handle, path, kind, limit) {
    locks[[handle]] <<- sv_lock(path, timeout = as.numeric(limit), shared = kind == "shared")
    say("ok")
  },
  unlock = function(handle) {
    sv_unlock(locks[[handle]])
    locks[[handle]] <<- NULL
    say("ok")
  },
  count = function(path, data, times) {
    for (i in seq_len(as.integer(times))) {
      sv_with_lock(path, writeLines(as.character(as.integer(readLines(data, warn = FALSE)) + 1L), data))
    }
    say("ok")
  },
  turns = function(path, data, total, mark) {
    while (sv_with_lock(path, {
      again <- file.size(data) < as.integer(total)
      if (again) {
        cat(mark, file = data, append = TRUE)
        Sys.sleep(0.002)
      }
      again
    })) Sys.sleep(0.001)
    say("ok")
  },
  fork = function(handle, fifo) {
    parallel::mcparallel({
      say("ok", if (sv_held(locks[[handle]])) "yes" else "no")
      try(sv_unlock(locks[[handle]]), silent = TRUE)
      readLines(fifo, warn = FALSE)
    }, detached = TRUE)
  },
  warned = function() say("ok", warned),
  fence = function(handle, path, limit, purpose) {
    locks[[handle]] <<- sv_lock(path, timeout = as.numeric(limit), fenced = TRUE, purpose = purpose)
    say("ok", number(locks[[handle]]$token))
  },
  tokens = function(path, data, times) {
    for (i in seq_len(as.integer(times))) {
      lock <- sv_lock(path, fenced = TRUE)
      cat(paste0(number(lock$token), "\n"), file = data, append = TRUE)
      sv_unlock(lock)
    }
    say("ok")
  },
  container = function(raw) {
    Sys.setenv(HOSTNAME = raw)
    say("ok", sv_container_id())
  },
  "build-container" = function(dir, name) say("ok", sv_container_path(dir, name)),
  "build-log" = function(dir, day) say("ok", sv_log_path(dir, as.Date(day))),
  "build-unique" = function(dir, name) say("ok", sv_unique_path(dir, name)),
  parse = function(name, ...) {
    found <- sv_parse_name(name, containers = if (...length()) c(...) else NULL)
    say("ok", found$form, found$name, found$container, blank(found$date), blank(found$worker), blank(found$count))
  },
  publish = function(path, source) {
    sv_publish(path, function(temporary) file.copy(source, temporary, overwrite = TRUE))
    say("ok")
  },
  replace = function(path, source) {
    sv_publish(path, function(temporary) file.copy(source, temporary, overwrite = TRUE), replace = TRUE)
    say("ok")
  },
  mark = function(second, size) say("ok", number(sv__mark(as.numeric(second), as.numeric(size)))),
  "publish-slowly" = function(path, source) {
    sv_publish(path, function(temporary) {
      file.copy(source, temporary, overwrite = TRUE)
      say("writing")
      hear()
    })
    say("ok")
  },
  purge = function(dir, version) say("ok", if (sv_purge_cache(dir, version)) "yes" else "no"),
  split = function(text) do.call(say, as.list(c("ok", sv_split_sql(text))))
)

repeat {
  words <- hear()
  verb <- verbs[[words[1]]]
  if (is.null(verb)) {
    say("unknown", words[1])
  } else {
    tryCatch(
      withCallingHandlers(do.call(verb, as.list(words[-1])), sv_network_warning = function(w) {
        warned <<- warned + 1
        invokeRestart("muffleWarning")
      }),
      sv_lock_timeout = function(e) say("timeout"),
      sv_already_published = function(e) say("taken"),
      error = function(e) say("error", conditionMessage(e))
    )
  }
}

# What the routes do: an order becomes a row in the database and a result on the shared volume, once.

settings <- list(
  schema = Sys.getenv("DATABASE_NAME", "jobs"),
  spool = Sys.getenv("SPOOL_DIR", "/shared/spool"),
  lock_timeout = as.numeric(Sys.getenv("LOCK_TIMEOUT", "100"))
)

connect <- function(...) {
  DBI::dbConnect(RMySQL::MySQL(), host = Sys.getenv("DATABASE_HOST"), dbname = settings$schema,
                 user = Sys.getenv("DATABASE_USER"), password = readLines(Sys.getenv("DATABASE_PASSWORD_FILE"))[1], ...)
}

# A directory of this replica's own; the sidecar takes an empty one away.
own <- function(kind) {
  path <- file.path(settings$spool, sv_container_id(), kind)
  dir.create(path, showWarnings = FALSE, recursive = TRUE)
  path
}

say <- function(...) {
  line <- paste0(format(Sys.time(), "%Y-%m-%d %H:%M:%S"), " INFO jobs: ", ...)
  cat(line, "\n", sep = "", file = sv_log_path(own("logs")), append = TRUE) # one replica, one process: its own file
  message(line)
}

find_job <- function(connection, id) {
  row <- DBI::dbGetQuery(connection, paste0(
    "SELECT id, replica, total, file FROM jobs WHERE file IS NOT NULL AND id = ", DBI::dbQuoteString(connection, id)))
  if (nrow(row)) as.list(row) else NULL
}

# The row is the claim, and another one who inserts it waits for the end of this transaction. When this replica is killed the
# server takes the row back, and the order can be repeated elsewhere.
do_job <- function(connection, id, numbers, seconds) {
  quoted <- function(text) DBI::dbQuoteString(connection, text)
  DBI::dbExecute(connection, "START TRANSACTION")
  DBI::dbExecute(connection, paste0("INSERT INTO jobs (id, replica) VALUES (", quoted(id), ", ",
                                    quoted(sv_container_id()), ")"))
  Sys.sleep(seconds)
  path <- sv_unique_path(own("results"), sprintf("job_%s.json", id))
  job <- list(id = id, replica = sv_container_id(), total = sum(numbers), file = basename(path))
  sv_publish(path, as.character(jsonlite::toJSON(job, auto_unbox = TRUE, digits = NA)))
  DBI::dbExecute(connection, sprintf("UPDATE jobs SET total = %.17g, file = %s WHERE id = %s", job$total,
                                     quoted(job$file), quoted(id)))
  DBI::dbExecute(connection, "COMMIT")
  say("job ", id, " done")
  job
}

put_job <- function(id, req, res) {
  if (!grepl("^[A-Za-z0-9-]{1,64}$", id)) { # it becomes a part of a file's name
    res$status <- 422
    return(list(error = "an id is of letters, digits and hyphens, 64 at most"))
  }
  connection <- connect()
  on.exit(DBI::dbDisconnect(connection))
  done <- find_job(connection, id)
  if (!is.null(done)) return(done)
  order <- req$body
  seconds <- if (is.null(order$seconds)) 0 else as.numeric(order$seconds)
  tryCatch({
    job <- do_job(connection, id, as.numeric(unlist(order$numbers)), seconds)
    res$status <- 201
    job
  }, error = function(e) {
    if (!grepl("Duplicate entry", conditionMessage(e), fixed = TRUE)) stop(e)
    DBI::dbExecute(connection, "ROLLBACK")
    find_job(connection, id)
  })
}

get_job <- function(id, res) {
  connection <- connect()
  on.exit(DBI::dbDisconnect(connection))
  job <- find_job(connection, id)
  if (is.null(job)) res$status <- 404
  if (is.null(job)) list(error = "no such job, or it is not done") else job
}

# sharedvol for R: the reference of docs/protocol.md in one file.
#
#   source("sharedvol.R")
#
# Needs R >= 4.0, the package filelock for locks, and DBI with a driver for migrations. Nothing is loaded or
# changed when the file is sourced; every name begins with sv_.


# ---- Containers and names -------------------------------------------------------------------------------------------


# ---- Locks ----------------------------------------------------------------------------------------------------------


# ---- Publishing -----------------------------------------------------------------------------------------------------


# ---- Cache version --------------------------------------------------------------------------------------------------


# ---- SQL scripts ----------------------------------------------------------------------------------------------------
#
# Taking a script apart by the rules of the stock MySQL and MariaDB clients: the same statements as
# sharedvol.migrations.split_script. R has no regular expression that begins at a position of a long text without
# copying the text, so this walks over tables of positions instead: each byte is looked at a few times.

# Stop with a condition of these classes, which is an sv_error, too. Further arguments are its fields.
sv_sql_stop <- function(classes, message, ...) {
  stop(structure(class = c(classes, "sv_error", "error", "condition"), list(message = message, call = NULL, ...)))
}

# Split a script into statements, as a character vector (UTF-8).
#   text: one string, or the bytes of a file (raw); UTF-8 either way.
#   backslash_escapes: FALSE for a server whose sql_mode has NO_BACKSLASH_ESCAPES.
# Stops with an sv_script_error ($line, $what) for a string, quoted identifier or comment that does not end, a last
# statement without the delimiter that was set, a client command that is not SQL, a NUL, and bytes that are not UTF-8.
sv_split_sql <- function(text, backslash_escapes = TRUE) {
  sv_parse_sql(text, backslash_escapes)$text
}

# As sv_split_sql(), with the line where each statement begins: list(text, line).
sv_parse_sql <- function(text, backslash_escapes = TRUE) {
  raw <- sv_sql_bytes(text)
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
    sv_sql_stop("sv_script_error", sprintf("line %d: %s", line, what), what = what, line = line)
  }
  if (any(nul <- byte[here] == 0L)) fail(which(nul)[1L], "a NUL character cannot be part of a statement")
  if (!validUTF8(rawToChar(raw))) {
    lines <- strsplit(rawToChar(raw), "\n", fixed = TRUE, useBytes = TRUE)[[1L]]
    line <- which(!validUTF8(lines))[1L]
    sv_sql_stop("sv_script_error", sprintf("line %d: not UTF-8: save it as UTF-8", line),
                what = "not UTF-8: save it as UTF-8", line = line)
  }

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
    if (word %in% sv_sql_commands$with_arguments) return(word)
    if (!(word == "use" || word %in% sv_sql_commands$plain)) return("")
    arguments <- solid_at[ended] < behind
    if (arguments == (word == "use")) word else ""
  }
  refuse_command <- function(at, command) {
    fail(at, sprintf("the client command %s is not SQL: leave it out", sv_sql_quoted(command)))
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
      if (byte[at - 1L] == 36L || sv_sql_is_word(piece(begin, at))) return(0L)
    }
    closed <- dollar_at[at + 1L]
    if (closed > n || (closed > at + 1L && !sv_sql_is_word(piece(at + 1L, closed)))) 0L else closed + 1L
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
               sprintf("the comment '/*!' is not closed before the delimiter %s", sv_sql_quoted(delimiter)))
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
      fail(begin, sprintf("the last statement does not end with its delimiter %s", sv_sql_quoted(delimiter)))
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
sv_sql_commands <- list(
  plain = strsplit(paste("clear edit ego exit go nopager notee nowarning print quit rehash resetconnection sandbox",
                         "ssl_session_data_print status warnings"), " ")[[1L]],
  with_arguments = strsplit("? charset connect help pager prompt query_attributes source system tee", " ")[[1L]]
)

# The bytes of a script without a byte order mark, lines ending in LF.
sv_sql_bytes <- function(text) {
  if (is.character(text) && length(text) == 1L && !is.na(text)) {
    if (Encoding(text) == "latin1") text <- enc2utf8(text)
    text <- charToRaw(text)  # any other is taken for what it is in UTF-8, also where the locale is "C"
  }
  if (!is.raw(text)) stop("a script is one string, or the bytes of one")
  if (length(text) >= 3L && all(text[1:3] == as.raw(c(0xef, 0xbb, 0xbf)))) text <- text[-(1:3)]
  if (length(text) > 1L) text <- text[!(text == 0x0d & c(text[-1L], as.raw(0L)) == 0x0a)]
  text
}

# Whether it is one word or part of one: letters of any script, digits and _.
sv_sql_is_word <- function(text) {
  if (grepl("^[A-Za-z0-9_]+\\z", text, perl = TRUE, useBytes = TRUE)) return(TRUE)
  any(charToRaw(text) > 0x7f) && grepl("(*UCP)^\\w+\\z", text, perl = TRUE)
}

# In quotes and on one line, for a message: as Python's repr().
sv_sql_quoted <- function(text) {
  for (escape in list(c("\\", "\\\\"), c("\n", "\\n"), c("\r", "\\r"), c("\t", "\\t"))) {
    text <- gsub(escape[1L], escape[2L], text, fixed = TRUE)
  }
  characters <- strsplit(text, "")[[1L]]
  for (one in which(grepl(sv_sql_unprintable, characters, perl = TRUE))) {
    code <- utf8ToInt(characters[one])
    form <- if (code < 0x100L) "\\x%02x" else if (code < 0x10000L) "\\u%04x" else "\\U%08x"
    characters[one] <- sprintf(form, code)
  }
  text <- paste(characters, collapse = "")
  if (!grepl("'", text, fixed = TRUE)) return(paste0("'", text, "'"))
  if (!grepl("\"", text, fixed = TRUE)) return(paste0("\"", text, "\""))
  paste0("'", gsub("'", "\\'", text, fixed = TRUE), "'")
}
sv_sql_unprintable <- "(*UCP)(?! )[\\p{C}\\p{Z}]"


# ---- Migrations -----------------------------------------------------------------------------------------------------


# ---- Readiness ------------------------------------------------------------------------------------------------------

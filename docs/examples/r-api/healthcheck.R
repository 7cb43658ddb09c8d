# Is this replica ready? The status of the answer, without anything but R itself.
address <- url("http://127.0.0.1:8000/health/ready")
answer <- tryCatch(readLines(address, warn = FALSE), error = function(e) NULL, warning = function(w) NULL)
quit(status = if (is.null(answer)) 1 else 0)

# The jobs API in R: migrate, then serve. See start for how it ends.
source("/app/sharedvol.R")
source("/app/jobs.R")

# One replica applies what is pending, of R or of Python: the same lock, the same ledger. An error ends the process.
status <- sv_migrate(connect, "/app/migrations", paste0(settings$schema, ".sharedvol_migration"),
                     timeout = settings$lock_timeout)
say("migrations applied: ", length(status$newly_applied))

ready <- function(res) {
  if (file.exists("/tmp/draining")) {
    res$status <- 503
    return(list(status = "draining"))
  }
  report <- sv_readiness(status, connect)
  res$status <- report$code
  report$body
}

router <- plumber::pr()
router <- plumber::pr_set_serializer(router, plumber::serializer_unboxed_json(digits = NA))
router <- plumber::pr_filter(router, "replica", function(res) {
  res$setHeader("X-Replica", sv_container_id())
  plumber::forward()
})
router <- plumber::pr_get(router, "/health/live", function() list(status = "alive"))
router <- plumber::pr_get(router, "/health/ready", ready)
router <- plumber::pr_put(router, "/jobs/<id>", put_job)
router <- plumber::pr_get(router, "/jobs/<id>", get_job)
plumber::pr_run(router, host = "0.0.0.0", port = 8000, docs = FALSE, quiet = TRUE)

CREATE INDEX jobs_by_day ON jobs (created);

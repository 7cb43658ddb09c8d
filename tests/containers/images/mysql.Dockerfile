# Stands in for mysql:8.4 where no registry is reached: Debian's MySQL 9 under an entry point that takes the same
# variables, and runs as the same user.
ARG BASE
FROM ${BASE}
RUN userdel mysql 2>/dev/null; groupadd --gid 999 mysql; useradd --uid 999 --gid 999 --home-dir /var/lib/mysql mysql
COPY --chmod=0755 mysql-entrypoint /usr/local/bin/docker-entrypoint.sh
RUN rm -rf /var/lib/mysql && install -d -o 999 -g 999 /var/lib/mysql /var/lib/mysql-files && install -d -m 1777 /var/run/mysqld
ENTRYPOINT ["docker-entrypoint.sh"]
EXPOSE 3306
CMD ["mysqld"]

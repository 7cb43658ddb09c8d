#!/bin/sh
# The conformance adapter of the shell: POSIX sh, flock(1) and coreutils, so the flock family only. See ../README.md.
# A lock's handle, a digit from 1 to 4, is descriptor 4 to 7.

LC_ALL=C
export LC_ALL

say() { printf '%s\n' "$*"; }

# One word decoded into $word. The dot keeps line feeds at the end, which a substitution drops.
decode() {
    case $1 in
    %) word='' ;;
    *%*)
        word=$(env printf '%b.' "$(printf '%s' "$1" | sed 's/\\/\\\\/g; s/%/\\x/g')")
        word=${word%.}
        ;;
    *) word=$1 ;;
    esac
}

encode() { printf '%s' "$1" | od -An -v -tx1 | tr -d '\n' | tr ' ' '%'; }

# open DESCRIPTOR PATH: the lock file, made with mode 0666 whatever the umask. It is opened with a fixed digit each
# time, as POSIX has no other way than eval; nothing but the digit is evaluated.
open() {
    { [ ! -e "$2" ] || [ -f "$2" ]; } && [ ! -L "$2" ] || return 1
    (umask 0 && : >>"$2") 2>/dev/null || return 1
    eval "exec $1<>\"\$2\""
}

take() { # take DESCRIPTOR PATH exclusive|shared SECONDS: 0 taken, 1 not in time, 2 cannot be
    open "$1" "$2" || return 2
    case $4 in
    inf) flock "--$3" "$1" || return 2 ;;
    0) flock "--$3" --nonblock --conflict-exit-code 1 "$1" || { eval "exec $1>&-" && return 1; } ;;
    *) flock "--$3" --timeout "$4" --conflict-exit-code 1 "$1" || { eval "exec $1>&-" && return 1; } ;;
    esac
}

lock() {
    take "$(($1 + 3))" "$2" "$3" "$4"
    case $? in
    0) say ok ;;
    1) say timeout ;;
    *) say error "$(encode "cannot lock $2")" ;;
    esac
}

unlock() {
    eval "exec $(($1 + 3))>&-"
    say ok
}

count() {
    todo=$3
    while [ "$todo" -gt 0 ]; do
        take 3 "$1" exclusive inf
        read -r number <"$2"
        printf '%s\n' "$((number + 1))" >"$2"
        exec 3>&-
        todo=$((todo - 1))
    done
    say ok
}

turns() {
    while :; do
        take 3 "$1" exclusive inf
        marks=''
        read -r marks <"$2"
        [ "${#marks}" -lt "$3" ] || break
        printf '%s' "$4" >>"$2"
        sleep 0.002
        exec 3>&-
        sleep 0.001
    done
    exec 3>&-
    say ok
}

# A child of a shell inherits every descriptor and, with it, the lock: it has to close them.
fork_() {
    (
        exec 4>&- 5>&- 6>&- 7>&-
        say ok no
        cat "$2" >/dev/null
    ) </dev/null &
}

mark() { # mark SECOND SIZE
    echo $((1 + ($1 % 999983 * 374761 + $2 % 999983 * 668265) % 999983))
}

publish() { # publish PATH SOURCE [slowly|replace]
    if [ "$3" = replace ] && [ -e "$1" ] && { [ ! -f "$1" ] && [ ! -L "$1" ]; }; then
        say error "$(encode "only files are replaced")" && return
    fi
    directory=$(dirname -- "$1")
    temporary=$(mktemp "$directory/.sh-XXXXXXXX.tmp") || { say error "$(encode "no file in $directory")" && return; }
    cat "$2" >"$temporary"
    chmod 644 "$temporary"
    [ "$3" != slowly ] || { say writing && read -r _; }
    second=$(($(stat -c %Y "$temporary") - 1)) # the one before, so that the time is never in the future
    touch -m -d "@$second.$(printf %06d "$(mark "$second" "$(stat -c %s "$temporary")")")" "$temporary"
    sync "$temporary"
    answer=ok
    command='ln -T'
    [ "$3" != replace ] || command='mv -fT'
    $command -- "$temporary" "$1" 2>/dev/null && sync "$directory" || answer=error
    [ "$answer" = ok ] || { [ ! -e "$1" ] && [ ! -L "$1" ]; } || answer=taken
    rm -f "$temporary"
    say "$answer"
}

while read -r verb a b c d; do
    decode "$a" && a=$word
    decode "$b" && b=$word
    case $verb in
    hello) say ok 1 shell flock lock shared timeout queue fork publish replace mark ;;
    reset) exec 4>&- 5>&- 6>&- 7>&- && say ok ;;
    lock) lock "$a" "$b" "$c" "$d" ;;
    unlock) unlock "$a" ;;
    count) count "$a" "$b" "$c" ;;
    turns) turns "$a" "$b" "$c" "$d" ;;
    fork) fork_ "$a" "$b" ;;
    publish) publish "$a" "$b" ;;
    mark) say ok "$(mark "$a" "$b")" ;;
    publish-slowly) publish "$a" "$b" slowly ;;
    replace) publish "$a" "$b" replace ;;
    *) say unknown "$verb" ;;
    esac
done

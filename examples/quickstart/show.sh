# What the examples' scripts share: commands shown as one would type them.

run() { # show a command as one would type it, then run it
    local word
    printf '\n$' >&2
    for word; do
        case $word in
            *[!A-Za-z0-9_./:=,+-]*) printf " '%s'" "$word" >&2 ;;
            *) printf ' %s' "$word" >&2 ;;
        esac
    done
    printf '\n' >&2
    "$@"
}

need_nemoalign() { # stop with the line to type when the command is not installed
    command -v nemoalign >/dev/null || {
        echo "nemoalign is not installed in this environment. Type: $1" >&2
        exit 7
    }
}

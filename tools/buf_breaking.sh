#!/usr/bin/env bash
# Compare proto/ with the main branch before this work: tools/buf_breaking.sh BUF. Works in worktrees and clones; where
# there is nothing to compare with (no git, a clone of depth 1, the first commit), it says so and succeeds.
set -euo pipefail

buf=$1

base() {
    local main
    git rev-parse --quiet --verify HEAD >/dev/null 2>&1 || return 1
    for main in origin/main main; do
        if git rev-parse --quiet --verify "$main" >/dev/null && git merge-base HEAD "$main" >/dev/null 2>&1 &&
            [[ $(git merge-base HEAD "$main") != $(git rev-parse HEAD) ]]; then
            git merge-base HEAD "$main"
            return
        fi
    done
    git rev-parse --quiet --verify 'HEAD~1'
}

if ! commit=$(base) || ! git cat-file -e "$commit:proto" 2>/dev/null; then
    echo "breaking: no earlier contract in this clone to compare with"
    exit 0
fi

before=$(mktemp -d)
trap 'rm -rf "$before"' EXIT
git archive "$commit" proto buf.yaml | tar -x -C "$before"
"$buf" breaking --against "$before"
echo "breaking: compatible with ${commit:0:10}"

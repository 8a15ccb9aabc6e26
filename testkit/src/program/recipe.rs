//! How each program is run in the guest: shell lines of root, in the order in which they are needed.
//!
//! In: a program. Out: lines, the files that they need, and how many operations a client's output tells of.
//! It runs nothing itself.

use super::sources::{PAGE_KIB, SOURCE_KIB, page, source};
use super::{Kind, Program};

/// How long a round takes where there is a rate.
const PACED_ROUND_S: u64 = 2;
/// Connections of a client.
const CLIENTS: u64 = 4;
/// What a value in Redis and memcached takes, with its key and the server's own.
const VALUE_BYTES: usize = 1100;
/// pgbench's unit: a branch has 100 000 accounts.
const BRANCH_MIB: usize = 16;
/// Rows of the SQLite table in a MiB.
const ROWS_A_MIB: usize = 9000;

/// The value of a key in Redis, in its Lua: the first 16 bytes belong to the client, the others follow from the seed.
const REDIS_VALUE: &str = "local function value(i) math.randomseed(ARGV[2] + i) \
    return string.rep(string.format('%08x%08x', math.random(0, 2147483646), i), 63) end \
    local function key(i) return string.format('key:%012d', i) end";
const REDIS_FILL: &str = "for i = 0, ARGV[1] - 1 do redis.call('set', key(i), value(i)) end";
const REDIS_CHECK: &str = "for i = 0, ARGV[1] - 1 do local got = redis.call('get', key(i)) \
    if not got or string.sub(got, 17) ~= string.sub(value(i), 17) then \
    return redis.error_reply('key ' .. i .. ' is wrong') end end";

/// Runs a command as the database's own user.
const AS_POSTGRES: &str =
    "setpriv --reuid=postgres --regid=postgres --init-groups env PATH=/usr/lib/postgresql/15/bin:$PATH";
/// In the end the deltas of the history are what accounts, tellers and branches hold.
const POSTGRES_CHECK: &str = "select 1 / (count(distinct sum) = 1)::int from (select sum(abalance) from pgbench_accounts \
    union all select sum(tbalance) from pgbench_tellers union all select sum(bbalance) from pgbench_branches \
    union all select coalesce(sum(delta), 0) from pgbench_history) sums";

const NGINX_CONFIG: &str = "user root; worker_processes 1; daemon off; error_log stderr; pid /tmp/nginx.pid; events {}\n\
    http { access_log off; server { listen 127.0.0.1:80; root /srv/www; } }\n";
/// wrk's script: a random file each time. Its words are seed, files, and the pause of a connection in ms.
const WRK_SCRIPT: &str = "local files, pause\n\
    function init(words) math.randomseed(words[1]) files, pause = words[2] - 1, tonumber(words[3]) end\n\
    function request() return wrk.format('GET', '/' .. math.random(0, files)) end\n\
    function delay() return pause end\n";

/// Of the disk: the same files for all guests, in the order of their names. The archive has every third.
const FILES_LIST: &str = "find /usr -xdev -type f -size -256k | LC_ALL=C sort | head -n 3000 >/srv/list && \
    awk 'NR % 3 == 0' /srv/list | tar -cPf /srv/archive.tar -T -";
const FILES_READ: &str =
    "{ xargs -a /srv/list cat | md5sum; md5sum </srv/archive.tar; cat /srv/own/* | md5sum; }";

const SQLITE_QUERY: &str = "select shop, count(*), sum(amount), max(note) from sales group by shop order by shop; \
    select day, avg(amount) from sales group by day having sum(amount) > 0 order by 2, 1;";

/// A file of the guest.
pub type File = (String, Vec<u8>);

/// Shell lines, and what goes with them. A line that is empty does nothing, with success.
pub struct Recipe {
    program: Program,
    /// Runs until it gets SIGTERM.
    pub server: Option<String>,
    /// Succeeds once the server answers.
    pub answers: String,
    /// Makes the data.
    pub fill: String,
    /// Succeeds where all data is as it should be.
    pub check: String,
}

impl Recipe {
    #[must_use]
    pub fn of(program: Program) -> Self {
        let Program { kind, size_mib, seed, .. } = program;
        let values = program.values();
        let (server, answers, fill, check) = match kind {
            Kind::Postgres => (
                Some(format!(
                    "mkdir -p /run/postgresql && chown postgres /run/postgresql && exec {AS_POSTGRES} postgres \
                     -D /var/lib/postgresql/15/main -c config_file=/etc/postgresql/15/main/postgresql.conf \
                     -c ssl=off -c jit=off -c shared_buffers={}MB",
                    (size_mib / 4).max(16)
                )),
                format!("{AS_POSTGRES} pg_isready -q"),
                format!("{AS_POSTGRES} pgbench -i -q -I dtGvp -s {}", size_mib.div_ceil(BRANCH_MIB)),
                format!("{AS_POSTGRES} psql -q -v ON_ERROR_STOP=1 -c \"{POSTGRES_CHECK}\""),
            ),
            Kind::Nginx => (
                Some("exec nginx -c /srv/nginx.conf".to_owned()),
                "wrk -t1 -c1 -d1s http://127.0.0.1/0 | grep -q 'requests in'".to_owned(),
                "cd /srv/www && sha256sum * >/srv/sums".to_owned(),
                "cd /srv/www && sha256sum --quiet -c /srv/sums".to_owned(),
            ),
            Kind::Redis => {
                let eval = |script: &str| {
                    format!("redis-cli -e eval \"{REDIS_VALUE} {script} return 'OK'\" 0 {values} {seed}")
                };
                (
                    Some("exec redis-server --bind 127.0.0.1 --save '' --appendonly no".to_owned()),
                    "redis-cli -e ping".to_owned(),
                    eval(REDIS_FILL),
                    eval(REDIS_CHECK),
                )
            }
            Kind::Memcached => (
                Some(format!("exec memcached -u root -l 127.0.0.1 -t 1 -m {}", size_mib.max(2))),
                "memcping --servers=127.0.0.1".to_owned(),
                format!(
                    "printf 'key\\n16 16 1\\nvalue\\n1000 1000 1\\ncmd\\n0 1.0\\n' >/srv/sets && {} -F /srv/sets -x {values}",
                    memaslap()
                ),
                "memcstat --servers=127.0.0.1 | grep -q curr_items".to_owned(),
            ),
            Kind::Compile => {
                (None, String::new(), compile(0), "cd /srv/objects && sha256sum --quiet -c *.sum".to_owned())
            }
            Kind::Sqlite => (
                None,
                String::new(),
                format!(
                    "sqlite3 /srv/sales.db \"create table sales \
                     (id integer primary key, shop integer, day integer, amount integer, note text); \
                     with recursive n(i, r) as (select 0, {seed} union all \
                     select i + 1, (r * 1103515245 + 12345) % 2147483648 from n where i < {}) \
                     insert into sales select i, (r >> 8) % 97, (r >> 12) % 365, r % 100000, printf('%080x', r) from n\" \
                     && sqlite3 /srv/sales.db \"{SQLITE_QUERY}\" >/srv/answer && test -s /srv/answer",
                    size_mib * ROWS_A_MIB
                ),
                "sqlite3 /srv/sales.db 'pragma integrity_check' | grep -qx ok".to_owned(),
            ),
            Kind::Files => (
                None,
                String::new(),
                format!("{FILES_LIST} && {FILES_READ} >/srv/sums"),
                format!("{FILES_READ} | cmp - /srv/sums"),
            ),
            Kind::Idle => (None, String::new(), String::new(), String::new()),
        };
        Self { program, server, answers, fill, check }
    }

    /// What has to be there before the first line.
    pub fn files(&self) -> Box<dyn Iterator<Item = File>> {
        let Program { kind, seed, .. } = self.program;
        let files = 0..self.program.files();
        let text = |path: &str, text: &str| (path.to_owned(), text.as_bytes().to_vec());
        match kind {
            Kind::Nginx => {
                let texts = [text("/srv/nginx.conf", NGINX_CONFIG), text("/srv/wrk.lua", WRK_SCRIPT)];
                let pages = files.map(move |number| (format!("/srv/www/{number}"), page(seed, number)));
                Box::new(texts.into_iter().chain(pages))
            }
            Kind::Compile => {
                let keep = [text("/srv/objects/keep", "")];
                let sources =
                    files.map(move |number| (format!("/srv/sources/{number}.c"), source(seed, number)));
                Box::new(keep.into_iter().chain(sources))
            }
            Kind::Files => {
                Box::new(files.map(move |number| (format!("/srv/own/{number:05}"), page(seed, number))))
            }
            _ => Box::new(std::iter::empty()),
        }
    }

    /// A run of the client, the n-th from 0; none where nothing runs.
    #[must_use]
    pub fn round(&self, number: u64) -> Option<String> {
        let program = self.program;
        let (operations, values, files) = (program.round_operations(), program.values(), program.files());
        let seed = program.seed.wrapping_add(number) % (1 << 31);
        Some(match program.kind {
            Kind::Postgres => {
                let clients = operations.min(CLIENTS);
                format!(
                    "{AS_POSTGRES} pgbench -n -c {clients} -t {} --random-seed={seed}",
                    operations.div_ceil(clients)
                )
            }
            Kind::Nginx => {
                let pause = (CLIENTS * 1000).checked_div(program.rate).unwrap_or(0);
                format!(
                    "wrk -t1 -c{CLIENTS} -d{PACED_ROUND_S}s -s /srv/wrk.lua http://127.0.0.1/ -- {seed} {files} {pause}"
                )
            }
            Kind::Redis => {
                // One round in four writes.
                let command = match number % 4 {
                    3 => "setrange key:__rand_int__ 0 __rand_int__",
                    _ => "get key:__rand_int__",
                };
                let used = values.div_ceil(program.used_one_in);
                format!("redis-benchmark -c {CLIENTS} -n {operations} -r {used} {command}")
            }
            Kind::Memcached => format!("{} -X 1000 -v 1.0 -x {operations}", memaslap()),
            Kind::Compile => compile(number % files as u64),
            Kind::Sqlite => format!(
                "for query in $(seq {operations}); do sqlite3 /srv/sales.db \"{SQLITE_QUERY}\" | cmp - /srv/answer || exit 1; \
                 done; echo {operations} answered"
            ),
            Kind::Files => format!("{FILES_READ} | cmp - /srv/sums && echo 1 read"),
            Kind::Idle => return None,
        })
    }

    /// From the beginning of a round to that of the next; 0 is one after another.
    #[must_use]
    pub fn round_every_ms(&self) -> u64 {
        let Program { kind, rate, .. } = self.program;
        match (kind, rate) {
            // Its client paces itself.
            (Kind::Nginx, _) | (_, 0) => 0,
            _ => self.program.round_operations() * 1000 / rate,
        }
    }

    /// What a client says it did; none where its output does not tell, or tells of something that went wrong.
    #[must_use]
    pub fn operations(&self, output: &str) -> Option<u64> {
        let number = match self.program.kind {
            Kind::Postgres => after(output, "transactions actually processed: ")?,
            Kind::Nginx => {
                let wrong = ["Non-2xx", "Socket errors"].iter().any(|error| output.contains(error));
                before(output, " requests in ").filter(|_| !wrong)?
            }
            Kind::Redis => before(output, " requests completed in ")?,
            Kind::Memcached => {
                // A value that is not there any more had to make room; a value that is another is wrong.
                let wrong = after(output, "verify_failed: ")? > 0;
                after(output, "Ops: ").filter(|_| !wrong)?
            }
            Kind::Compile => before(output, " compiled")?,
            Kind::Sqlite => before(output, " answered")?,
            Kind::Files => before(output, " read")?,
            Kind::Idle => return None,
        };
        Some(number)
    }
}

impl Program {
    /// Values in Redis or memcached.
    fn values(&self) -> usize {
        (self.size_mib << 20) / VALUE_BYTES
    }

    /// Files that are served or compiled.
    fn files(&self) -> usize {
        let kib = if self.kind == Kind::Compile { SOURCE_KIB } else { PAGE_KIB };
        (self.size_mib << 10) / kib
    }

    /// Operations of a round, where the client can be told how many. Without a rate as many as an emulated guest does
    /// in some seconds.
    fn round_operations(&self) -> u64 {
        match (self.kind, self.rate) {
            (Kind::Redis | Kind::Memcached, 0) => 10_000,
            (Kind::Postgres, 0) => 200,
            (_, 0) => 1,
            (_, rate) => rate * PACED_ROUND_S,
        }
    }
}

/// Compiles a source; the first object of it is what all later ones are compared with.
fn compile(file: u64) -> String {
    format!(
        "cd /srv/objects && gcc-12 -O1 -c -o {file}.o /srv/sources/{file}.c && \
         if [ -e {file}.sum ]; then sha256sum --quiet -c {file}.sum; else sha256sum {file}.o >{file}.sum; fi \
         && echo 1 compiled"
    )
}

fn memaslap() -> String {
    format!("memcaslap -s 127.0.0.1:11211 -T 1 -c {CLIENTS}")
}

/// The number right behind the first `mark`.
fn after(output: &str, mark: &str) -> Option<u64> {
    let rest = output.split_once(mark)?.1;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// The number right before the first `mark`.
fn before(output: &str, mark: &str) -> Option<u64> {
    let rest = output.split_once(mark)?.0;
    let begin = rest.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
    rest[begin..].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operations(kind: Kind, output: &str) -> Option<u64> {
        Recipe::of(Program::new(kind)).operations(output)
    }

    #[test]
    fn each_client_says_what_it_did() {
        let pgbench = "number of transactions per client: 50\n\
            number of transactions actually processed: 200/200\nnumber of failed transactions: 0 (0.000%)\n";
        assert_eq!(operations(Kind::Postgres, pgbench), Some(200));
        assert_eq!(operations(Kind::Nginx, "  296 requests in 3.01s, 12.89MB read\n"), Some(296));
        assert_eq!(
            operations(Kind::Redis, "====== get ======\n  10000 requests completed in 0.18 seconds\n"),
            Some(10_000)
        );
        assert_eq!(
            operations(Kind::Memcached, "verify_failed: 0\n\nRun time: 0.1s Ops: 5000 TPS: 7\n"),
            Some(5000)
        );
        assert_eq!(operations(Kind::Compile, "1 compiled\n"), Some(1));
        assert_eq!(operations(Kind::Sqlite, "3 answered\n"), Some(3));
        assert_eq!(operations(Kind::Files, "1 read\n"), Some(1));
    }

    #[test]
    fn a_client_that_failed_has_done_nothing() {
        for (kind, output) in [
            (Kind::Nginx, "  296 requests in 3.01s, 12.89MB read\n  Non-2xx or 3xx responses: 91\n"),
            (Kind::Nginx, "  0 requests in 3.01s\n  Socket errors: connect 4, read 0, write 0, timeout 0\n"),
            (Kind::Memcached, "verify_failed: 2\nRun time: 0.1s Ops: 5000 TPS: 7\n"),
            (Kind::Redis, "Could not connect\n"),
        ] {
            assert_eq!(operations(kind, output), None, "{output}");
        }
    }

    #[test]
    fn a_rate_sets_the_length_of_a_round_and_when_the_next_begins() {
        let redis = Program { rate: 300, ..Program::new(Kind::Redis) };
        let recipe = Recipe::of(redis);
        assert!(recipe.round(0).unwrap().contains("-n 600 "), "{:?}", recipe.round(0));
        assert_eq!(recipe.round_every_ms(), 2000);
        assert_eq!(Recipe::of(Program::new(Kind::Redis)).round_every_ms(), 0);
        // 4 connections, each with 80 ms between two requests.
        let nginx = Recipe::of(Program { rate: 50, ..Program::new(Kind::Nginx) });
        assert!(nginx.round(0).unwrap().ends_with(" 7 256 80"), "{:?}", nginx.round(0));
        assert_eq!(nginx.round_every_ms(), 0);
    }

    #[test]
    fn idle_has_no_rounds_and_all_others_have() {
        for kind in Kind::ALL {
            assert_eq!(Recipe::of(Program::new(kind)).round(5).is_none(), kind == Kind::Idle);
        }
    }
}

//! Simulated VMs under the rules that the agent goes by, second by second: what leaves DRAM, what becomes free, what
//! comes back.

use std::time::Duration;

use fastrand::Rng;

use super::savings::{Chooser, Facts, estimate};
use super::{Budget, COPY_WAIT, Reclaim};
use crate::policy::{Action, Bands, Rules, demotions, note_return};
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::tiermap::{BLOCK_PAGES, Layout, PageEntry, PageIndex, Place, Seconds, VmPages};
use crate::tiers::{NodeTiers, TierId};
use crate::track::VmId;
use crate::vm::{Backing, Hva, RamRegion};

const MIB: u32 = 256;
/// 508 MiB, as in the guests that the rules were first tried with.
const PAGES: u32 = 508 * MIB;
const SWAP: Place = Place::In(TierId(1));
const BUDGET: Duration = Duration::from_millis(60);
/// 0.2 % of the pages.
const READS: f64 = 260.0;
const READ_WAIT: Duration = Duration::from_micros(90);

/// What a guest touches in a second: pages by number, in the guest's own order.
type Touches = Box<dyn FnMut(u32, &mut Rng) -> Vec<PageIndex>>;

/// How the guest's pages lie in the table: in its own order, or at random, in blocks of 2 MiB or page by page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strewn {
    No,
    Blocks,
    Pages,
}

/// A VM and all that decides about it.
struct Simulated {
    touches: Touches,
    /// Where in the table the guest's pages are.
    at: Vec<PageIndex>,
    pages: VmPages,
    reclaim: Reclaim,
    random: Rng,
    /// When each page was touched, where the kernel chooses; else nothing.
    touched: Vec<i64>,
    second: u32,
    /// What the clock showed when it began.
    began: u32,
    /// Returns of each second: without a read, and with one.
    copies: Vec<u64>,
    reads: Vec<u64>,
    /// Pages that went out in each second.
    sent: Vec<u64>,
    freed: Vec<bool>,
    /// MiB, after each minute.
    free_by_minute: Vec<usize>,
}

fn now(second: u32) -> (Monotonic, Seconds) {
    (Monotonic(u64::from(second) * 1_000_000_000), Seconds((second & 0xffff) as u16))
}

impl Simulated {
    fn new(seed: u64, strewn: Strewn, touches: Touches) -> Self {
        let bytes = u64::from(PAGES) * PAGE_BYTES;
        let layout = Layout::new(&[RamRegion { start: Hva(0), bytes, backing: Backing::Anonymous }]);
        let mut pages = VmPages::new(layout, NodeTiers(1));
        for page in 0..PAGES {
            pages.update(page, |_| PageEntry::found(Place::In(TierId(0)), Seconds(0)));
        }
        let mut reclaim = Reclaim::default();
        reclaim.set_limits(Some(Budget { wait: BUDGET, reads: READS }), rules().demote_after);
        let mut random = Rng::with_seed(seed);
        let mut at: Vec<PageIndex> = (0..PAGES).collect();
        match strewn {
            Strewn::No => {}
            Strewn::Blocks => {
                let mut blocks: Vec<_> = at.chunks(BLOCK_PAGES as usize).map(<[_]>::to_vec).collect();
                random.shuffle(&mut blocks);
                at = blocks.concat();
            }
            Strewn::Pages => random.shuffle(&mut at),
        }
        Self {
            touches,
            at,
            pages,
            reclaim,
            random,
            touched: Vec::new(),
            second: 0,
            began: 0,
            copies: Vec::new(),
            reads: Vec::new(),
            sent: Vec::new(),
            freed: vec![false; PAGES as usize],
            free_by_minute: Vec::new(),
        }
    }

    /// The kernel chooses by its LRU, which has seen the guest for ten minutes.
    fn by_lru(mut self) -> Self {
        self.touched = vec![-600; PAGES as usize];
        for second in 0..600 {
            for page in (self.touches)(second, &mut self.random) {
                self.touched[self.at[page as usize] as usize] = i64::from(second) - 600;
            }
        }
        self
    }

    fn began_at(mut self, second: u32) -> Self {
        self.began = second;
        self
    }

    fn now(&self) -> (Monotonic, Seconds) {
        (now(self.began + self.second).0, now(self.second).1)
    }

    fn run(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.second += 1;
            self.touch();
            self.decide();
            if self.second.is_multiple_of(60) {
                self.free_by_minute.push(self.free_mib());
            }
        }
    }

    /// The figures of the decision record.
    fn tell(&self, guest: &str) {
        let free = |minutes: usize| self.free_by_minute.get(minutes - 1);
        println!(
            "{guest}: free {:?} MiB after 5 min, {:?} after 10, {:?} after 30; \
             {} reads in 10 min, {} in the worst minute; {} MiB sent in 10 min, {} in all; {} copies in all",
            free(5),
            free(10),
            free(30),
            self.reads_in(0..10),
            self.worst_minute(),
            self.sent.iter().take(600).sum::<u64>() / 256,
            self.sent.iter().sum::<u64>() / 256,
            self.copies.iter().sum::<u64>(),
        );
    }

    fn touch(&mut self) {
        let (time, clock) = self.now();
        let (mut copies, mut reads) = (0, 0);
        for page in (self.touches)(self.second, &mut self.random) {
            let page = self.at[page as usize];
            if let Some(touched) = self.touched.get_mut(page as usize) {
                *touched = self.second.into();
            }
            if self.pages.get(page).place() != SWAP {
                continue;
            }
            let touch = self.pages.touch(page, clock, false);
            let back = self.reclaim.waited_for(page, 1, READ_WAIT, time);
            if back.read {
                reads += 1;
            } else {
                copies += 1;
            }
            note_return(&mut self.pages, page, touch, back.soon, &rules(), clock);
            self.freed[page as usize] = false;
        }
        self.reclaim.read_back(reads, READ_WAIT, time);
        self.copies.push(copies);
        self.reads.push(reads);
    }

    fn decide(&mut self) {
        let (time, clock) = self.now();
        let rules = rules();
        if !self.touched.is_empty() {
            let pages = self.reclaim.may_reclaim(PAGES.into(), READ_WAIT, time);
            return self.reclaim_oldest(pages);
        }
        self.pages.age(clock, self.second.is_multiple_of(240));
        let mut sent = 0;
        let may = self.reclaim.may_send(u64::from(PAGES), time);
        let verdict = |block| self.reclaim.verdict(block, time);
        for step in demotions(VmId(1), &self.pages, &rules, (&[0, may], &verdict), clock) {
            assert_eq!(step.action, Action::Place { to: TierId(1) });
            sent += step.pages.len() as u64;
            for page in &step.pages {
                self.pages.update(*page, |entry| entry.with_place(SWAP));
            }
            self.reclaim.sent(&step.pages, true, time);
        }
        self.sent.push(sent);
        let due = self.reclaim.due(65_536, time, |_| true);
        self.reclaim.freed(&due);
        due.iter().for_each(|page| self.freed[*page as usize] = true);
    }

    /// As the kernel does it: one page in twenty is in use.
    fn reclaim_oldest(&mut self, pages: u64) {
        if pages == 0 {
            return;
        }
        let mut there: Vec<_> = (0..PAGES).filter(|page| !self.freed[*page as usize]).collect();
        let most = usize::try_from(pages).unwrap().min(there.len());
        self.random.shuffle(&mut there);
        let mut chosen = there.split_off(there.len() - most / 20);
        let oldest = most - most / 20;
        let nth = oldest.min(there.len() - 1);
        there.select_nth_unstable_by_key(nth, |page| self.touched[*page as usize]);
        chosen.extend(there.into_iter().take(oldest));
        for page in &chosen {
            self.pages.update(*page, |entry| entry.with_place(SWAP));
            self.freed[*page as usize] = true;
        }
        self.reclaim.reclaimed(chosen.len() as u64, self.now().0);
    }

    fn free_mib(&self) -> usize {
        self.freed.iter().filter(|freed| **freed).count() / MIB as usize
    }

    /// Of the seconds of these minutes.
    fn reads_in(&self, minutes: std::ops::Range<usize>) -> u64 {
        self.reads[minutes.start * 60..minutes.end * 60].iter().sum()
    }

    /// What it waited for in the worst minute.
    fn worst_wait(&self) -> Duration {
        let second = |(reads, copies): (&u64, &u64)| {
            READ_WAIT * u32::try_from(*reads).unwrap() + COPY_WAIT * u32::try_from(*copies).unwrap()
        };
        let waits: Vec<Duration> = self.reads.iter().zip(&self.copies).map(second).collect();
        waits.chunks(60).map(|minute| minute.iter().sum()).max().unwrap_or_default()
    }

    fn worst_minute(&self) -> u64 {
        (0..self.reads.len() / 60).map(|minute| self.reads_in(minute..minute + 1)).max().unwrap_or(0)
    }
}

fn rules() -> Rules {
    Rules {
        demote_after: Duration::from_mins(2),
        priority: 50,
        excess_pages: 0,
        bands: Bands::ROOMY,
        armed_at: None,
        keep_huge: false,
    }
}

/// 32 MiB all the time, 64 MiB once a second, so many random pages of 96 MiB, nothing of 316 MiB.
fn ages(tail_a_second: u32) -> Touches {
    Box::new(move |_, random| {
        let mut touched: Vec<_> = (0..96 * MIB).collect();
        touched.extend((0..tail_a_second).map(|_| 96 * MIB + random.u32(0..96 * MIB)));
        touched
    })
}

/// Of 60 % of the pages 20,000 a second, the nth most popular one with a probability of 1/n.
fn zipf() -> Touches {
    Box::new(|_, random| {
        let most = f64::from(PAGES) * 0.6;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "from 1 to the pages of a VM"
        )]
        let rank = |random: &mut Rng| most.powf(random.f64()) as PageIndex;
        (0..20_000).map(|_| rank(random) - 1).collect()
    })
}

/// 64 MiB all the time, others every five minutes.
fn jumps() -> Touches {
    let mut first = 0;
    Box::new(move |second, random| {
        if second % 300 == 0 {
            first = random.u32(0..PAGES - 64 * MIB);
        }
        (first..first + 64 * MIB).collect()
    })
}

/// Through 400 MiB every ten minutes.
fn walk() -> Touches {
    Box::new(|second, _| {
        let step = 400 * MIB / 600;
        let first = second % 600 * step;
        (first..first + step).collect()
    })
}

/// Nothing for an hour but a page now and then, then everything at once, every night.
fn nights() -> Touches {
    Box::new(|second, _| if second % 3600 == 0 { (0..PAGES).collect() } else { vec![second % PAGES] })
}

/// Of what is never touched, percent.
fn percent_free(vm: &Simulated, never_mib: usize) -> usize {
    vm.free_mib() * 100 / never_mib
}

#[test]
fn what_is_cold_is_free_within_six_minutes_and_next_to_nothing_is_waited_for() {
    let mut vm = Simulated::new(1, Strewn::No, ages(100));
    vm.run(360);
    assert!(percent_free(&vm, 316) >= 95, "{} MiB", vm.free_mib());
    assert!(vm.reads_in(0..6) < 100, "{}", vm.reads_in(0..6));
    let at_first = vm.free_mib();
    vm.run(1440);
    vm.tell("ages");
    assert!(vm.free_mib().abs_diff(at_first) < 10, "it does not oscillate: {} MiB", vm.free_mib());
    assert!(vm.reads_in(6..30) < 24 * 50, "nor spend its budget: {}", vm.reads_in(6..30));
    assert!(vm.worst_wait() < BUDGET, "{:?}", vm.worst_wait());
}

#[test]
fn what_is_cold_is_free_wherever_its_blocks_lie_and_whenever_it_began() {
    for (seed, began) in [(1, 1), (2, 7), (3, 14), (4, 21), (5, 28)] {
        for tail_a_second in [30, 60, 100] {
            let mut vm = Simulated::new(seed, Strewn::Blocks, ages(tail_a_second)).began_at(began);
            vm.run(600);
            vm.tell(&format!("blocks, began at {began}, {tail_a_second} a second"));
            let free = vm.free_by_minute[5] * 100 / 316;
            assert!(free >= 95, "began at {began}, {tail_a_second} a second: {free} % after 6 min");
            let reads = vm.reads_in(0..10);
            assert!(reads < 520, "began at {began}, {tail_a_second} a second: {reads} reads, two budgets");
        }
    }
}

#[test]
fn what_is_cold_is_found_where_hot_and_cold_pages_are_strewn() {
    for (seed, began) in [(2, 0), (3, 11), (4, 23)] {
        let mut vm = Simulated::new(seed, Strewn::Pages, ages(100)).began_at(began);
        vm.run(1800);
        vm.tell("strewn");
        assert!(percent_free(&vm, 316) >= 95, "{} MiB", vm.free_mib());
        assert!(vm.worst_minute() < 325, "a quarter over the budget: {}", vm.worst_minute());
        assert!(vm.worst_wait() < BUDGET * 2, "from there on it rests: {:?}", vm.worst_wait());
    }
}

#[test]
fn what_is_touched_by_a_zipf_law_is_kept_and_the_rest_becomes_free() {
    let mut vm = Simulated::new(3, Strewn::Pages, zipf());
    vm.run(1800);
    vm.tell("zipf");
    assert!(percent_free(&vm, 203) >= 90, "{} MiB", vm.free_mib());
    assert!(vm.worst_minute() < 325, "a quarter over the budget: {}", vm.worst_minute());
}

#[test]
fn a_walk_that_comes_again_is_waited_for_once() {
    let mut vm = Simulated::new(4, Strewn::No, walk());
    vm.run(3000);
    vm.tell("walk");
    let all = u64::from(PAGES);
    assert!(vm.reads_in(0..20) < all, "{}", vm.reads_in(0..20));
    assert!(vm.reads_in(20..50) < 30 * 260, "{}", vm.reads_in(20..50));
}

#[test]
fn of_a_working_set_that_jumps_less_is_freed_each_time() {
    let mut vm = Simulated::new(5, Strewn::No, jumps());
    vm.run(7200);
    vm.tell("jumps");
    let (first, last) = (vm.reads_in(0..30), vm.reads_in(90..120));
    assert!(last * 3 < first, "{last} of {first}");
}

#[test]
fn a_vm_that_wakes_as_a_whole_waits_for_each_page_once_and_is_left_alone_for_a_minute() {
    let mut vm = Simulated::new(6, Strewn::No, nights());
    vm.run(3599);
    let free = vm.free_mib();
    assert!(free >= 450, "{free} MiB");
    vm.run(1);
    assert_eq!(vm.reads.last().map(|reads| reads / u64::from(MIB)), Some(free as u64));
    vm.run(59);
    assert_eq!(vm.reclaim.copies(), 0, "nothing goes out");
}

/// Of a VM whose pages the kernel chooses the budget may be passed by what goes until that shows.
const WORST_BY_LRU: u64 = 260 * 3 / 2;

#[test]
fn what_the_kernel_chooses_is_cold_wherever_it_lies_and_it_is_asked_no_more_when_nothing_cold_is_left() {
    for (guest, strewn) in [("ages, by LRU", Strewn::No), ("strewn, by LRU", Strewn::Pages)] {
        let mut vm = Simulated::new(7, strewn, ages(100)).by_lru();
        vm.run(1800);
        vm.tell(guest);
        let free = |minutes: usize| vm.free_by_minute[minutes - 1] * 100 / 316;
        assert!(free(10) >= 70 && free(15) >= 90, "{guest}: {} % {} %", free(10), free(15));
        assert!(vm.worst_minute() < WORST_BY_LRU, "{guest}: {}", vm.worst_minute());
        let late = vm.reads_in(20..30);
        assert!(late < 10 * 160, "{guest}: its budget is not spent for ever: {late}");
    }
}

#[test]
fn of_what_the_kernel_chooses_a_vm_with_a_long_tail_keeps_the_tail() {
    let mut vm = Simulated::new(8, Strewn::Pages, zipf()).by_lru();
    vm.run(1800);
    vm.tell("zipf, by LRU");
    assert!(percent_free(&vm, 203) >= 90, "{} MiB", vm.free_mib());
    assert!(vm.worst_minute() < WORST_BY_LRU, "{}", vm.worst_minute());
}

#[test]
fn after_a_jump_or_a_walk_the_kernel_is_not_asked_for_a_while() {
    for (guest, touches) in [("walk, by LRU", walk()), ("jumps, by LRU", jumps())] {
        let mut vm = Simulated::new(9, Strewn::No, touches).by_lru();
        vm.run(1800);
        vm.tell(guest);
        assert!(vm.free_by_minute[29] >= 100, "{guest}: {} MiB", vm.free_by_minute[29]);
    }
}

#[test]
fn what_was_tried_foretells_how_much_will_be_away() {
    for (name, strewn) in [("regions", Strewn::No), ("strewn", Strewn::Pages)] {
        let mut vm = Simulated::new(7, strewn, ages(100));
        let mut told = Vec::new();
        for _ in 0..60 {
            vm.run(30);
            let clock = now(vm.second).1;
            let in_use =
                |entry: PageEntry| entry.place() != SWAP && entry.idle(clock) < 120 && vm.second > 120;
            let in_use_pages = (0..PAGES).filter(|page| in_use(vm.pages.get(*page))).count() as u64;
            let away = vm.pages.counts().get(SWAP);
            let facts = Facts {
                in_memory_pages: u64::from(PAGES) - away,
                touched_pages: PAGES.into(),
                in_use_pages,
                copied_pages: 0,
                not_moved: None,
                ages: Err(String::new()),
                chooser: Chooser::Agent,
                tried: vm.reclaim.tried(now(vm.second).0),
            };
            told.push((vm.second, away, vm.reclaim.copies(), estimate(&facts)));
        }
        let end = vm.pages.counts().get(SWAP);
        let (mut all, mut right) = (0, 0_u32);
        for (second, away, copies, estimate) in told {
            let Ok(estimate) = estimate else { continue };
            let (lower, upper) = (estimate.lower_pages.unwrap(), estimate.upper_pages.unwrap());
            let mib = |pages: u64| pages / u64::from(MIB);
            println!(
                "{name}, {second} s: {} MiB away, then {} ({} to {}); in the end {}",
                mib(away),
                mib(away + estimate.expected_pages),
                mib(away + lower),
                mib(away + upper),
                mib(end)
            );
            all += 1;
            let slack = u64::from(40 * MIB);
            right += u32::from((away + lower..=away + upper).contains(&end));
            assert!(
                // What has a copy in memory is on probation.
                away - copies + lower <= end + slack && end <= away + upper + slack,
                "{name}, {second} s: what is in use now and then goes out and comes back"
            );
        }
        println!("{name}: {right} of {all} intervals hold the end");
        assert!(all > 40, "{name}: {all} estimates in half an hour");
    }
}

//! What each attack by itself costs a bystander, beside what the same attack on another member of
//! this machine costs him. It is a table for people, by hand: `ETCORE_HOSTILE_TABLE=3` makes it of
//! the best of three rounds each.

use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use etcore_server::sim::hostile::{Hostile, Manner};

use super::attacker::carry_out;
use super::bystander::p99;
use super::{FLOODS, Harm, PREPARED_PIECES, Scene, as_if_elsewhere, flood_for, under_attack};
use crate::harness::{Setup, is_available};

const TIME: Duration = Duration::from_secs(2);
const ATTACKERS: usize = 8;
/// What an attack may cost: three times what it costs beside, or so much.
const FACTOR: f64 = 3.0;
const ENOUGH: Duration = Duration::from_millis(20);

/// Connections of one life only.
fn of_life(setup: &Setup, kind: &str, seeds: &AtomicU64) {
    let until = Instant::now() + TIME;
    std::thread::scope(|scope| {
        for _ in 0..ATTACKERS {
            scope.spawn(|| {
                as_if_elsewhere(0);
                while Instant::now() < until {
                    let seed = seeds.fetch_add(1, Ordering::Relaxed);
                    let hostile = Hostile::new(seed, Manner::REAL);
                    if hostile.kind() == kind
                        && let Ok(socket) = TcpStream::connect(("127.0.0.1", setup.client_port))
                    {
                        carry_out(socket, hostile);
                    }
                }
            });
        }
    });
}

/// Of 99 in a hundred: attacked, beside, and how many times one is the other.
struct Cost {
    attacked: Duration,
    beside: Duration,
}

impl Cost {
    fn ratio(&self) -> f64 {
        self.attacked.as_secs_f64() / self.beside.as_secs_f64().max(1e-6)
    }

    fn is_within(&self) -> bool {
        self.attacked <= ENOUGH || self.ratio() <= FACTOR
    }
}

/// The best of some rounds, puts and reads each.
fn best(rounds: usize, run: impl Fn() -> Harm) -> [Cost; 2] {
    let mut best: Option<[Cost; 2]> = None;
    for _ in 0..rounds {
        let harm = run();
        let cost = [
            Cost { attacked: p99(&harm.attacked.puts), beside: p99(&harm.beside.puts) },
            Cost { attacked: p99(&harm.attacked.gets), beside: p99(&harm.beside.gets) },
        ];
        best = Some(match best {
            None => cost,
            Some(before) => {
                let mut pairs = before.into_iter().zip(cost);
                std::array::from_fn(|_| {
                    let (before, now) = pairs.next().expect("two");
                    if now.attacked < before.attacked { now } else { before }
                })
            }
        });
    }
    best.expect("one round at least")
}

#[test]
fn each_attack_by_itself_costs_a_bystander_little() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let Some(rounds) = std::env::var("ETCORE_HOSTILE_TABLE").ok() else {
        eprintln!("only with ETCORE_HOSTILE_TABLE=rounds: takes minutes, on a quiet machine");
        return;
    };
    let rounds: usize = rounds.parse().expect("a number of rounds");
    let driver = if is_available("uring") { "uring" } else { "portable" };
    let mut lines = Vec::new();
    let mut too_much = Vec::new();
    let mut add = |name: String, [puts, reads]: [Cost; 2]| {
        let shown = |cost: &Cost| {
            format!("{:.1?} / {:.1?} ({:.1})", cost.attacked, cost.beside, cost.ratio())
        };
        let line = format!("{name:45} puts {:28} reads {}", shown(&puts), shown(&reads));
        eprintln!("{line}");
        if !(puts.is_within() && reads.is_within()) {
            too_much.push(line.clone());
        }
        lines.push(line);
    };
    for kind in
        ["Noise", "Frames", "Calls", "Crowds", "Watches", "Renewals", "Uploads", "Plain", "Silent"]
    {
        let seeds = AtomicU64::new(1);
        let cost = best(rounds, || {
            under_attack(driver, &Scene::new(driver), Scene::new, |setup| {
                of_life(setup, kind, &seeds);
            })
        });
        add(format!("hostile: {kind}"), cost);
    }
    for (name, flood) in FLOODS {
        let start: Vec<u8> = (0..PREPARED_PIECES).flat_map(flood).collect();
        let cost = best(rounds, || {
            under_attack(driver, &Scene::new(driver), Scene::new, |setup| {
                let ended = AtomicU64::new(0);
                std::thread::scope(|scope| {
                    for _ in 0..3 {
                        scope.spawn(|| flood_for(setup, name, (&start, flood), TIME, &ended));
                    }
                });
            })
        });
        add(format!("flood: {name}"), cost);
    }
    eprintln!("p99 attacked / the same attack beside (ratio):\n{}", lines.join("\n"));
    assert!(too_much.is_empty(), "too much:\n{}", too_much.join("\n"));
}

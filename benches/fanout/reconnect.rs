//! The workload `reconnect`: subscribers of channels of their own are cut off, much is published that is not
//! for them, and they come back at once.

use crate::common::load::aside::Aside;
use crate::common::load::{Load, Pace};
use crate::common::numbers::{quantile_us, sorted};
use crate::cpu::Cpu;
use crate::measured::{Figure, Figures};
use crate::one_channel::PUBLISHERS;
use crate::server::Server;
use crate::setting::Setting;

/// Subscribers, each on a channel of its own.
const SUBSCRIBERS: usize = 5_000;
/// Messages on other channels while they are away, for each of them.
const OTHERS: usize = 10;
/// How many other channels there are.
const OTHER_CHANNELS: usize = 1_000;

pub(crate) fn measure(setting: &Setting, server: Server) -> anyhow::Result<Figures> {
    let running = server.start(setting)?;
    let address = running.process.address;
    let own = (0..SUBSCRIBERS).map(|subscriber| vec![subscriber]).collect();
    let mut load = Load::on_channels(address, server.dialect(), own)?;
    load.subscribe(SUBSCRIBERS)?;
    load.connect_publishers(PUBLISHERS)?;
    publish(&mut load, 0)?;
    let cut = load.cut();
    publish(&mut load, OTHERS)?;

    let mut aside = Aside::connect(address, server.dialect())?;
    aside.warm_up()?;
    let cpu = || Cpu::of(&running.process, setting.cores.server, setting.accounting);
    let before = cpu()?;
    let time = load.bring_back_beside(&cut, &mut aside)?;
    let cpu = cpu()? - before;
    publish(&mut load, 0)?;
    let times = sorted(aside.times);
    Ok(vec![
        (Figure::ReturnCpu, cpu.total() / SUBSCRIBERS as f64),
        (Figure::ReturnTime, time.as_secs_f64()),
        (Figure::ReturnP99, quantile_us(&times, 0.99)),
        (Figure::ReturnWorst, quantile_us(&times[times.len().saturating_sub(1)..], 0.0)),
        (Figure::ReturnLook, aside.longest_look.as_secs_f64() * 1e3),
    ])
}

/// Publishes a message on each subscriber's channel, and so many on other channels before each. All that are
/// connected have them then.
fn publish(load: &mut Load, others: usize) -> anyhow::Result<()> {
    let first = load.next_number();
    load.aim(move |number| {
        let place = number - first;
        let subscriber = place / (others + 1);
        // Some more may be published than are asked for.
        let is_own = place % (others + 1) == others && subscriber < SUBSCRIBERS;
        if is_own { subscriber } else { SUBSCRIBERS + place % OTHER_CHANNELS }
    });
    load.run_messages(Pace::Answered, SUBSCRIBERS * (others + 1))?;
    Ok(())
}

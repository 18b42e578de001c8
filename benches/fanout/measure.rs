//! How each workload is done with a server.

use anyhow::bail;

use crate::channels;
use crate::history;
use crate::measured::Measured;
use crate::one_channel;
use crate::reconnect;
use crate::server::Server;
use crate::setting::Setting;
use crate::workload::Workload;

/// One measurement of one server.
pub(crate) fn measure(
    measured: &mut Measured,
    setting: &Setting,
    workload: Workload,
    server: Server,
) -> anyhow::Result<()> {
    let figures = match workload {
        Workload::Memory => one_channel::memory(setting, workload, server)?,
        Workload::MemoryOwn => channels::memory(setting, workload, server, 1)?,
        Workload::MemoryTen => channels::memory(setting, workload, server, 10)?,
        Workload::Posts | Workload::FilePosts => one_channel::posts(setting, workload, server)?,
        Workload::Beside => one_channel::beside(setting, server)?,
        Workload::RoundRobin => channels::round_robin(setting, server)?,
        Workload::TenOf1000 => channels::ten_of_1000(measured, setting, server)?,
        Workload::Reconnect => reconnect::measure(setting, server)?,
        Workload::Quiet => history::quiet(setting, server)?,
        Workload::Million => history::million(setting)?,
        _ => match workload.fan_out() {
            Some((subscribers, window)) => {
                one_channel::fan_out(measured, setting, workload, server, subscribers, window)?
            }
            None => bail!("{workload:?} is a proof"),
        },
    };
    measured.add(server, figures);
    Ok(())
}
